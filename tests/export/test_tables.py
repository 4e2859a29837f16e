"""What other tools get is what the memory holds."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from helpers.published import publish, run
from memory_builder.base.runner import LocalRunner
from memory_builder.cli import main
from memory_builder.indexing.config import IndexConfig
from memory_builder.indexing.driver import index
from memory_builder.memory import Memory


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    publish(tmp_path / "laion", [6, 4])
    run(tmp_path / "laion", tmp_path / "memory")
    index(str(tmp_path / "memory"), keys=("image",), config=IndexConfig(), runner=LocalRunner())
    return tmp_path / "memory"


def test_the_urls_of_all_rows_or_of_hits(memory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Memory.open(memory).delete(ids=[2])
    assert main(["export", str(memory), str(tmp_path / "all"), "--as", "img2dataset"]) == 0
    table = pq.read_table(tmp_path / "all" / "00000.parquet")
    assert table["url"].to_pylist() == [f"0-{i}" for i in (0, 1, 3, 4, 5)] + [f"1-{i}" for i in range(4)]
    assert table["id"].to_pylist()[-1] == (1 << 32) + 3
    assert capsys.readouterr().out.startswith("9 URLs in ")

    np.save(tmp_path / "queries.npy", Memory.open(memory).vectors([0, 1 << 32]))
    main(["search", str(memory), "--vector", str(tmp_path / "queries.npy"), "-k", "2", "--json"])
    hits = tmp_path / "hits.jsonl"
    hits.write_text(capsys.readouterr().out)
    assert main(["export", str(memory), str(tmp_path / "some"), "--as", "img2dataset", "--hits", str(hits)]) == 0
    asked = dict.fromkeys(hit["id"] for line in hits.read_text().splitlines() for hit in json.loads(line)["hits"])
    table = pq.read_table(tmp_path / "some" / "00000.parquet")
    assert table["id"].to_pylist() == list(asked)
    assert table["url"].to_pylist()[0] == "0-0"


def test_a_list_is_not_written_beside_another(memory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export = ["export", str(memory), str(tmp_path / "all"), "--as", "img2dataset"]
    assert main(export) == 0
    before = (tmp_path / "all" / "00000.parquet").read_bytes()
    Memory.open(memory).delete(ids=[2])
    assert main(export) == 2
    assert (
        "holds 00000.parquet, which img2dataset would read with this list: use an empty folder"
        in capsys.readouterr().err
    )
    assert (tmp_path / "all" / "00000.parquet").read_bytes() == before


def test_hits_that_were_deleted_since_are_left_out_and_counted(
    memory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hits = tmp_path / "hits.jsonl"
    found = [{"id": row, "caption": "one\u2028two\u2029\x85"} for row in (5, 2, 0, 1 << 32)]
    hits.write_text(json.dumps({"query": 0, "hits": found}, ensure_ascii=False) + "\n", encoding="utf-8")
    Memory.open(memory).delete(ids=[2, 1 << 32])
    assert main(["export", str(memory), str(tmp_path / "out"), "--as", "img2dataset", "--hits", str(hits)]) == 0
    assert pq.read_table(tmp_path / "out" / "00000.parquet")["id"].to_pylist() == [5, 0]
    assert "2 URLs in" in (said := capsys.readouterr().out)
    assert "2 rows are deleted and were left out" in said
    Memory.open(memory).delete(ids=[0, 5])
    assert main(["export", str(memory), str(tmp_path / "none"), "--as", "img2dataset", "--hits", str(hits)]) == 0
    assert pq.read_table(tmp_path / "none" / "00000.parquet").num_rows == 0


def test_hits_that_are_none(memory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "hits").write_text('{"query": 0}')
    assert (
        main(["export", str(memory), str(tmp_path / "out"), "--as", "img2dataset", "--hits", str(tmp_path / "hits")])
        == 2
    )
    assert "expected output of search --json" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_rows_without_a_url_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish(tmp_path / "laion", [3], kinds="img")
    run(tmp_path / "laion", tmp_path / "memory")
    assert main(["export", str(tmp_path / "memory"), str(tmp_path / "out"), "--as", "img2dataset"]) == 0
    assert "0 URLs" in (said := capsys.readouterr().out)
    assert "3 rows have no URL" in said
