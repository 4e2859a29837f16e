"""Hits unpack as faiss's results do, are indexed by query, and become lists, tables, frames and thumbnails."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import memory_builder as mb
from helpers.memories import clustered


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> mb.Memory:
    images, texts = clustered(300, 16, seed=0, n_clusters=5)
    metadata = {
        "key": [f"k{row}" for row in range(300)],
        "caption": [f"caption <{row}>" if row % 2 else None for row in range(300)],
        "stars": [row / 2 for row in range(300)],
    }
    root = tmp_path_factory.mktemp("hits") / "memory"
    return mb.Memory.from_vectors(root, images=images, texts=texts, metadata=metadata)


@pytest.fixture(scope="module")
def queries(memory: mb.Memory) -> Any:
    return memory.vectors([3, 40, 7])


def test_they_unpack_as_faiss_returns_them(memory: mb.Memory, queries: Any) -> None:
    hits = memory.search(vectors=queries, k=4)
    scores, ids = hits
    assert scores is hits.scores
    assert ids is hits.ids
    assert ids[:, 0].tolist() == [3, 40, 7]
    assert len(hits) == 3


def test_they_are_indexed_by_query(memory: mb.Memory, queries: Any) -> None:
    hits = memory.search(vectors=queries, k=4)
    assert hits[1].ids.tolist() == hits.ids[1:2].tolist()
    assert hits[-1].ids.tolist() == hits.ids[2:].tolist()
    assert hits[:2].ids.tolist() == hits.ids[:2].tolist()
    for beyond in (3, -4):
        with pytest.raises(IndexError, match="of 3"):
            hits[beyond]


def test_they_become_lists_and_tables_with_chosen_columns(memory: mb.Memory, queries: Any) -> None:
    hits = memory.search(vectors=queries, k=2)
    lists = hits.to_list(["caption", "stars"])
    assert [row["id"] for row in lists[0]] == hits.ids[0].tolist()
    assert lists[0][0] == {"id": 3, "score": float(hits.scores[0, 0]), "caption": "caption <3>", "stars": 1.5}
    assert set(hits.to_list()[0][0]) == {"id", "score", "key", "caption", "url", "path"}
    table = hits.to_arrow("similarity")
    assert table.column_names == ["query", "id", "score", "similarity"]
    assert table["query"].to_pylist() == [0, 0, 1, 1, 2, 2]
    assert table["similarity"] == table["score"]
    frame = hits.to_pandas(["caption", "similarity"])
    assert isinstance(frame, pd.DataFrame)
    assert frame["caption"].isna().sum() == sum(row % 2 == 0 for row in hits.ids.ravel().tolist())
    with pytest.raises(mb.UsageError, match="no column colour"):
        hits.to_list(["colour"])


def test_padding_is_left_out(memory: mb.Memory, queries: Any) -> None:
    hits = memory.search(vectors=queries[:1], k=5, where="stars < 1")
    assert hits.ids.tolist()[0][2:] == [-1, -1, -1]
    assert [row["id"] for row in hits.to_list()[0]] == hits.ids[0, :2].tolist()
    assert hits.to_arrow().num_rows == 2


def test_hits_of_no_memory_know_scores_and_ids_alone() -> None:
    hits = mb.Hits(scores=np.ones((1, 1), np.float32), ids=np.zeros((1, 1), np.int64))
    assert hits.to_arrow(()).to_pylist() == [{"query": 0, "id": 0, "score": 1.0}]
    with pytest.raises(mb.UsageError, match="these hits have no memory"):
        hits.to_list()


def test_a_notebook_shows_captions_where_pictures_are_not_to_be_had(memory: mb.Memory, queries: Any) -> None:
    shown = memory.search(vectors=queries[:1], k=1)._repr_html_()
    assert "caption &lt;3&gt;" in shown
    assert "<img" not in shown


def test_from_vectors_adds_nothing_twice_and_refuses_what_does_not_fit(tmp_path: Path) -> None:
    images, texts = clustered(50, 8, seed=1, n_clusters=3)
    for _ in range(2):
        memory = mb.Memory.from_vectors(tmp_path / "memory", images=images, texts=texts)
        assert len(memory) == 50
    assert memory.rows([7])["key"].to_pylist() == ["00000007"]
    refused = (
        ({}, "no vectors"),
        ({"images": images, "texts": texts[:10]}, r"differ in rows or width: image \[50, 8\], text \[10, 8\]"),
        ({"images": images, "metadata": {"key": ["a"]}}, "metadata 1 rows"),
        ({"images": images, "metadata": {"stars": [[1.0]] * 50}}, "metadata column stars is of type list"),
        ({"images": np.full((2, 8), np.nan)}, "expected finite floats"),
        ({"images": np.zeros(8)}, "expected finite floats"),
    )
    for number, (arguments, message) in enumerate(refused):
        with pytest.raises(mb.UsageError, match=message):
            mb.Memory.from_vectors(tmp_path / str(number), **arguments)


def test_metadata_of_many_types_becomes_columns(tmp_path: Path) -> None:
    images, _ = clustered(4, 8, seed=1, n_clusters=2)
    columns = {"n": pa.array([1, 2, 3, None], pa.int16()), "ok": [True, None, False, True], "x": [0.5, 1, None, 2]}
    memory = mb.Memory.from_vectors(tmp_path / "memory", images=images, metadata=pa.table(columns))
    rows = memory.metadata(range(4), ["n", "ok", "x"]).to_pylist()
    assert rows == [
        dict(zip(columns, row, strict=True))
        for row in ((1, True, 0.5), (2, None, 1), (3, False, None), (None, True, 2))
    ]
