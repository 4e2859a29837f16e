"""Every command of docs/sources.md and docs/retrieve.md, run on sources as they describe them."""

import csv
import json
import re
import shlex
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.bundled import ROOT, SAMPLE, small_shard
from memory_builder.catalog.manifest import Manifest
from memory_builder.model.encoder import EncoderConfig, load_encoder
from memory_builder.readers.read import Pair, read_pairs
from memory_builder.storage.store import Store


def commands(page: str) -> list[str]:
    """The lines of a page's blocks of sh."""
    text = (ROOT / "docs" / page).read_text()
    return [line for block in re.findall(r"```sh\n(.*?)```", text, re.S) for line in block.splitlines()]


@pytest.fixture(scope="module")
def home(tmp_path_factory, model) -> Path:
    """The same twelve pairs in every shape."""
    home = tmp_path_factory.mktemp("sources")
    (home / "tars").mkdir()
    for i in range(2):
        small_shard(SAMPLE / "00000.tar.gz", home / "tars" / f"{i:05d}.tar", n_pairs=6, skip=6 * i)
    pairs = [
        pair for i in range(2) for pair in read_pairs(str(home / "tars" / f"{i:05d}.tar")) if isinstance(pair, Pair)
    ]
    captions = [pair.caption for pair in pairs]
    _folders(home, pairs)
    _tables(home, pairs, captions)
    _vectors(home, pairs, captions, model)
    return home


def _folders(home: Path, pairs: list[Pair]) -> None:
    (home / "pictures").mkdir()
    for i, pair in enumerate(pairs):
        (home / "pictures" / f"{i}.png").write_bytes(pair.image)
        (home / "pictures" / f"{i}.txt").write_text(pair.caption)
    (home / "img2dataset").mkdir()
    small_shard(SAMPLE / "00000.tar.gz", home / "img2dataset" / "00000.tar", n_pairs=12)
    rows = [{"key": pair.key, "url": f"https://host/{pair.key}", "similarity": 0.5} for pair in reversed(pairs)]
    pq.write_table(
        pa.Table.from_pylist([{"key": "failed"}, *rows], rows_schema()), home / "img2dataset" / "00000.parquet"
    )


def rows_schema() -> pa.Schema:
    return pa.schema([("key", pa.string()), ("url", pa.string()), ("similarity", pa.float64())])


def _tables(home: Path, pairs: list[Pair], captions: list[str]) -> None:
    images = [pair.image for pair in pairs]
    pq.write_table(pa.table({"jpg": images, "title": captions}), home / "bytes.parquet")
    (home / "huggingface").mkdir()
    structs = [{"bytes": image, "path": None} for image in images]
    pq.write_table(
        pa.table({"image": structs, "text": captions}), home / "huggingface" / "train-00000-of-00001.parquet"
    )
    paths = [f"pictures/{i}.png" for i in range(len(pairs))]
    pq.write_table(
        pa.table({"url": [f"file://{home}/{path}" for path in paths], "TEXT": captions}), home / "links.parquet"
    )
    with (home / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "caption"], *zip(paths, captions, strict=True)])
    rows = [json.dumps({"path": path, "caption": caption}) for path, caption in zip(paths, captions, strict=True)]
    (home / "list.jsonl").write_text("\n".join(rows))
    with (home / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["caption"], *([caption] for caption in captions)])


def _vectors(home: Path, pairs: list[Pair], captions: list[str], model: str) -> None:
    vectors = load_encoder(EncoderConfig(model=model)).encode_texts(captions)
    for folder in ("img_emb", "text_emb", "metadata"):
        (home / "laion" / folder).mkdir(parents=True)
    np.save(home / "laion" / "img_emb" / "img_emb_0.npy", vectors)
    np.save(home / "laion" / "text_emb" / "text_emb_0.npy", vectors)
    table = {"image_path": [pair.key for pair in pairs], "caption": captions, "url": captions}
    pq.write_table(pa.table(table), home / "laion" / "metadata" / "metadata_0.parquet")
    index = faiss.index_factory(vectors.shape[1], "IVF2,Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(vectors.astype(np.float32))
    index.add(vectors.astype(np.float32))
    faiss.write_index(index, str(home / "laion" / "image.index"))


def test_the_commands_in_their_order_do_what_the_page_says(home, command, model, monkeypatch):
    monkeypatch.chdir(home)
    for line in commands("sources.md"):
        arguments = [model if word == "MODEL" else word for word in shlex.split(line)]
        ran = command(*arguments[1:])
        assert ran.code == 0, (line, ran.err)
        if "--memory" not in arguments:
            assert ran.out.startswith(("12 URLs", "12 rows")), (line, ran.out)
            continue
        memory = Store(arguments[arguments.index("--memory") + 1])
        assert Manifest.read(memory).n_rows == 12, line
        assert " 0 rejects" in ran.out, (line, ran.out)


@pytest.fixture(scope="module")
def task(tmp_path_factory, small_shards, built_memory) -> Path:
    """What docs/retrieve.md asks for and with; the evaluation set holds pictures of the memory."""
    home = tmp_path_factory.mktemp("task")
    (home / "MEMORY").symlink_to(built_memory)
    (home / "classnames.txt").write_text("cat\nbus\ncup of coffee\n")
    (home / "captions.txt").write_text("a red umbrella\n\nan airplane that takes off\n")
    pictures = [pair.image for pair in read_pairs(str(small_shards / "00000.tar"))][:3]
    for i, picture in enumerate(pictures):
        (home / f"{i}.png").write_bytes(picture)
    classes = [{"name": f"thing {i}", "images": [f"{i}.png"]} for i in range(3)]
    (home / "classes.json").write_text(json.dumps(classes))
    for split, shard in (("test", "00001.tar"), ("train", "00002.tar")):
        (home / "evaluation" / split).mkdir(parents=True)
        (home / "evaluation" / split / "0.tar").write_bytes((small_shards / shard).read_bytes())
        (home / "evaluation" / split / "nshards.txt").write_text("1")
    return home


@pytest.mark.parametrize("line", commands("retrieve.md"), ids=lambda line: line.split()[-1])
def test_the_command_of_retrieve_makes_the_subset_that_the_page_describes(line, task, command, monkeypatch):
    monkeypatch.chdir(task)
    arguments = shlex.split(line)[1:]
    ran = command(*arguments, "--json")
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    subset = Path(arguments[arguments.index("--out") + 1])
    pairs = [pair for tar in sorted(subset.glob("*.tar")) for pair in read_pairs(str(tar))]
    assert len(pairs) == told["pairs"] > 0
    for name in ("hits.parquet", "subset.json", "subset.html", "centroids.npy", "support.npy", "support.parquet"):
        assert (subset / name).stat().st_size > 0
    shards = {pair.fields["row_id"] >> 32 for pair in pairs}
    if "--exclude" in arguments:
        assert told["decontaminated"] > 0
        assert 1 not in shards  # the test split is the memory's shard 1; its train split, shard 2, is not kept out
    if "--total" in arguments:
        assert told["pairs"] <= 100
