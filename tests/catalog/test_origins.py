"""A row's path leads back to the file that its user named."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memory_builder.catalog.origins import path_of
from memory_builder.errors import UsageError
from memory_builder.readers.shard_uri import Piece, join_uri

IN_LISTING = "/data/list.csv"
PATHS = [
    ("/data/00000.tar", "a/b.jpg", "/data/00000.tar/a/b.jpg"),
    ("s3://b/00000.tar", "x.jpg", "s3://b/00000.tar/x.jpg"),
    (join_uri("/photos", Piece(folder="cats", items=(0, 10))), "a.jpg", "/photos/cats/a.jpg"),
    (join_uri("/photos", Piece(folder="")), "a.jpg", "/photos/a.jpg"),
    (IN_LISTING, "p/a.jpg", "/data/p/a.jpg"),
    (join_uri(IN_LISTING, Piece(items=(0, 3), bytes=(4, 9))), "./a.jpg", "/data/a.jpg"),
    (IN_LISTING, "/else/a.jpg", "/else/a.jpg"),
    (IN_LISTING, "https://host/a.jpg", None),
    ("/data/t.parquet", "row 5", "/data/t.parquet"),
    ("/data/t.parquet", "./row 5", "/data/row 5"),
    (join_uri("/laion", Piece(embeddings="0000")), "a.jpg", None),
    ("/data/00000.tar", None, None),
]


@pytest.mark.parametrize(("uri", "member", "path"), PATHS)
def test_a_path_is_that_of_the_file(uri: str, member: str | None, path: str | None) -> None:
    assert path_of(uri, member) == path


def test_rows_have_paths_and_any_metadata_column(tmp_path: Path, write_memory: Any) -> None:
    from memory_builder.memory import Memory

    vectors = np.eye(8, dtype=np.float32)
    write_memory(tmp_path / "m", vectors, vectors, shard_rows=5)
    memory = Memory.open(tmp_path / "m")
    table = memory.rows([(1 << 32) + 1, -1, 0], ("path", "width", "caption"))
    assert table.column_names == ["id", "path", "width", "caption"]
    assert table["path"].to_pylist() == [
        "/synthetic/000000005.tar/00000006.png",
        None,
        "/synthetic/000000000.tar/00000000.png",
    ]
    assert memory.rows([3, -1], "width").to_pylist() == [{"id": 3, "width": 64}, {"id": -1, "width": None}]
    assert memory.rows([], ["width", "path"]).column_names == ["id", "width", "path"]
    with pytest.raises(UsageError, match="no column colour"):
        memory.rows([0], "colour")
    assert table["width"].to_pylist() == [64, None, 64]
    assert table["caption"].to_pylist() == ["caption 6", None, "caption 0"]
