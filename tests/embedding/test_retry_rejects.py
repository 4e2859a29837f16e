"""A second try at rejected pairs leaves committed rows where they are."""

import csv
from pathlib import Path

import pytest

from helpers.tars import pair, picture, tar_bytes
from memory_builder.base.runner import LocalRunner
from memory_builder.catalog.manifest import Manifest
from memory_builder.catalog.plan import read_plan
from memory_builder.embedding.config import EmbedConfig
from memory_builder.embedding.driver import embed
from memory_builder.maintenance.info import read_info
from memory_builder.memory import Memory
from memory_builder.model.encoder import EncoderConfig
from memory_builder.storage.store import Store


@pytest.fixture
def run(tmp_path: Path, model_dir: Path):
    def embed_again(*sources: str, **options):
        encoder = EncoderConfig(model=f"local-dir:{model_dir}")
        return embed(
            sources, str(tmp_path / "memory"), encoder=encoder, config=EmbedConfig(), runner=LocalRunner(), **options
        )

    return embed_again


def test_pictures_that_came_late_become_rows_of_new_shards(tmp_path: Path, run) -> None:
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(picture(i))
    with (tmp_path / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "caption"], *([f"{i}.png", f"picture {i}"] for i in range(5))])
    bad = [*pair("a"), ("b.png", b"no picture"), ("b.txt", b"b"), *pair("c"), *pair("a", 7)]
    (tmp_path / "t.tar").write_bytes(tar_bytes(bad))
    sources = (str(tmp_path / "list.csv"), str(tmp_path / "t.tar"))
    first = run(*sources)
    assert (first.n_rows, first.n_rejects) == (5, 4)
    before = {path: path.read_bytes() for path in (tmp_path / "memory" / "img_emb").iterdir()}
    (tmp_path / "3.png").write_bytes(picture(3))

    again = run(retry_rejects=True)
    assert (again.n_rows, again.n_rejects, again.n_embedded) == (6, 3, 2)
    assert all(path.read_bytes() == data for path, data in before.items())
    store = Store(tmp_path / "memory")
    assert [shard.uri.rpartition("#")[2] for shard in read_plan(store)[2:]] == ["rejects=0", "rejects=1"]
    info = read_info(store)
    assert (info.rows, info.rejects) == (6, {"no such file": 1, "not an image": 1, "duplicate key": 1})
    captions = Memory.open(tmp_path / "memory")
    assert len(captions) == 6

    (tmp_path / "4.png").write_bytes(picture(4))
    third = run(sources[0], retry_rejects=True)  # the rejects of shard 0 were tried: now those of the second try
    assert (third.n_rows, third.n_rejects, third.n_embedded) == (7, 2, 1)
    assert run(*sources).n_embedded == 0
    assert sum(commit.n_written for commit in Manifest.read(store).commits.values()) == 7


def test_rejects_of_a_shard_that_is_gone_fail_alone(tmp_path: Path, run) -> None:
    for name in ("s.tar", "t.tar"):
        (tmp_path / name).write_bytes(tar_bytes([*pair("a"), ("b.txt", b"no picture")]))
    run(str(tmp_path / "s.tar"), str(tmp_path / "t.tar"))
    content = (tmp_path / "s.tar").read_bytes()
    (tmp_path / "s.tar").unlink()
    again = run(retry_rejects=True)
    assert again.n_embedded == 1
    assert ["s.tar#rejects=0 is missing" in said for said in again.failed.values()] == [True]
    (tmp_path / "s.tar").write_bytes(content)
    assert run(retry_rejects=True).n_embedded == 1 + 1  # what came of t.tar's was a reject again
