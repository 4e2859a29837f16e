"""What a fusion learns from shows nothing that a set asks about, and the memory it comes from is as it was."""

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from unasked import Unasked, make_unasked

from memory_builder import Memory
from memory_builder.cli import main as memory_builder

SAMPLE = Path(__file__).parents[2] / "memory_builder" / "demo" / "sample"


def test_rows_of_asked_things_are_left_out(tmp_path: Path, model_dir: Path) -> None:
    root, out = tmp_path / "memory", tmp_path / "memory-unasked"
    shard = tmp_path / "00000.tar"
    shard.write_bytes(gzip.decompress((SAMPLE / "00000.tar.gz").read_bytes()))
    assert memory_builder(["embed", str(shard), "--memory", str(root), "--model", f"local-dir:{model_dir}"]) == 0
    assert memory_builder(["index", str(root)]) == 0
    whole = Memory.open(root)
    keys = whole.rows(whole.row_ids(0), ["key"])["key"].to_pylist()
    # Thing 9 is drawn once, in all its pictures.
    rows = [
        {"key": key, "entity": f"thing {i % 50}", "cluster": 9 if i % 50 == 9 else 100 + i, "split": "memory"}
        for i, key in enumerate(keys)
    ]
    rows += [
        {"key": "asked", "entity": "thing 7", "cluster": 1, "split": "test"},
        {"key": "asked on dev", "entity": "thing 8", "cluster": 2, "split": "dev"},
        {"key": "learnt by the base", "entity": "thing 9", "cluster": 3, "split": "base"},
    ]
    (tmp_path / "splits").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "splits" / "splits.parquet")
    for _ in range(2):  # the second time it is there
        make_unasked(Unasked(memory=root, splits=tmp_path / "splits", out=out))
    left = Memory.open(out)
    found = left.search(vectors=whole.vectors(whole.row_ids(0)[:60]), k=1).ids[:, 0]
    expected = [i % 50 not in (7, 8) for i in range(60)]
    assert [hit == row for hit, row in zip(found, whole.row_ids(0)[:60], strict=True)] == expected
    assert len(left) == len(whole) - sum(i % 50 in (7, 8) for i in range(len(keys)))
    assert len(Memory.open(root)) == len(keys)
    make_unasked(Unasked(memory=root, splits=tmp_path / "splits", out=out, fewest=2))  # asked otherwise: made anew
    assert len(Memory.open(out)) == len(left) - sum(i % 50 == 9 for i in range(len(keys)))
