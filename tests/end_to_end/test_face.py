"""The library by its public names alone, from shards to thumbnails."""

import json
import re
from pathlib import Path

import pytest

import memory_builder as mb
from helpers.bundled import MODEL


@pytest.fixture(scope="module")
def memory(small_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> mb.Memory:
    root = str(tmp_path_factory.mktemp("face") / "memory")
    report = mb.embed(str(small_shards / "00000.tar"), root, model=MODEL)
    assert (report.n_rows, report.failed) == (50, {})
    assert mb.embed(str(small_shards / "00001.tar"), root).n_rows == 100  # with the memory's own model
    mb.index(root, max_memory="1G", target_recall=0.9)
    return mb.Memory.open(root)


def test_a_search_in_one_line(memory: mb.Memory) -> None:
    hits = memory.search("a cat", k=5)
    (rows,) = hits.to_list(["caption", "similarity"])
    assert len(rows) == 5
    assert rows[0]["similarity"] == rows[0]["score"] == hits.scores[0, 0]


def test_a_notebook_shows_thumbnails(memory: mb.Memory) -> None:
    shown = memory.search(["a cat", "a house"], k=3)._repr_html_()
    assert len(re.findall(r"<img src='data:image/webp;base64,[\w+/=]+'>", shown)) == 6
    assert shown.count("<tr>") == 2


def test_a_model_must_be_known(small_shards: Path, tmp_path: Path) -> None:
    with pytest.raises(mb.UsageError, match="name a model"):
        mb.embed(str(small_shards / "00000.tar"), str(tmp_path / "new"))


def test_a_subset_of_class_names(memory: mb.Memory, tmp_path: Path) -> None:
    summary = mb.retrieve(
        memory, classes=["cat", "house"], templates=["an icon of a {c}"], out=str(tmp_path / "subset")
    )
    assert summary.classes == 2
    described = json.loads((tmp_path / "subset" / "retrieve.json").read_text())
    assert [c["name"] for c in described["classes"]] == ["cat", "house"]
    assert described["templates"] == ["an icon of a {c}"]
    with pytest.raises(mb.ConfigMismatchError, match="templates"):
        mb.retrieve(memory, classes=["cat", "house"], out=str(tmp_path / "subset"))


def test_former_names_go_on_for_one_more_version(memory: mb.Memory) -> None:
    vector = memory.vectors([0], keys="text")
    former = memory.search(vectors=vector, side="text", keys="text", k=3)
    assert (
        former.ids.tolist() == memory.search(vectors=vector, query_modality="text", modality="text", k=3).ids.tolist()
    )
    with pytest.raises(mb.UsageError, match="keys is the former name of modality"):
        memory.search(vectors=vector, keys="text", modality="image")
