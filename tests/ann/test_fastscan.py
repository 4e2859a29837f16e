"""Served as FastScan, an index finds the same rows under the same ids, filters and deletions included."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memory_builder.base.runner import LocalRunner
from memory_builder.cli import main
from memory_builder.errors import UsageError
from memory_builder.indexing.config import IndexConfig
from memory_builder.indexing.driver import index as index_memory
from memory_builder.memory import Memory

N, D = 1_500, 16
DELETED = list(range(100, 150))


def build(root: Path, key: str | None, write_memory: Callable[..., Any], clustered: Any) -> None:
    columns = {"number": "int"}
    write_memory(root, *clustered(N, D, seed=0), shard_rows=500, columns=columns, fields=lambda row: {"number": row})
    config = IndexConfig(index_key=key, train_threads=1, part_rows=500)
    index_memory(str(root), keys=("image",), config=config, runner=LocalRunner())
    Memory.open(root).delete(ids=DELETED)


def common(a: Any, b: Any) -> float:
    return float(np.mean([len(set(x) & set(y)) / len(x) for x, y in zip(a.ids.tolist(), b.ids.tolist(), strict=True)]))


@pytest.mark.parametrize("key", ["OPQ8_16,IVF8_HNSW8,PQ8x4np", "IVF8,RaBitQ4"])
def test_fastscan_finds_what_plain_codes_find(tmp_path: Path, key: str, write_memory: Any, clustered: Any) -> None:
    build(tmp_path, key, write_memory, clustered)
    plain, fast = Memory.open(tmp_path), Memory.open(tmp_path, serve_format="fastscan")
    queries = plain.vectors(np.arange(40), "text")
    for where in (None, "number < 1400", "number BETWEEN 120 AND 1300"):
        by_code = [memory.search(vectors=queries, where=where, nprobe=4, refine=0) for memory in (plain, fast)]
        assert common(*by_code) > 0.9  # its scores are rounded: what is close may change places
        refined = [memory.search(vectors=queries, where=where, nprobe=8, refine=16) for memory in (plain, fast)]
        assert common(*refined) > 0.98
        assert not np.isin(refined[1].ids, DELETED).any()
        np.testing.assert_allclose(refined[1].scores[:, 0], refined[0].scores[:, 0], atol=0.05)
    everything = fast.search(vectors=queries[:1], k=N, nprobe=8, refine=0).ids[0]
    assert len(set(everything[everything >= 0].tolist())) == N - len(DELETED)
    one = fast.search(vectors=queries[0], nprobe=8, refine=16)
    assert one.ids.shape == (1, 10)
    selected = fast.index("image").candidates(
        queries, 5, 8, fast._allowed.of(fast.index("image"), "number BETWEEN 150 AND 160")
    )
    assert set(selected[1].ravel().tolist()) <= set(range(150, 161))


@pytest.mark.parametrize(
    ("key", "reason"), [("IVF8,PQ4x8np", "8 bits"), ("IVF8,SQ8", "ScalarQuantizer"), (None, "exact")]
)
def test_codes_without_a_fastscan_are_refused(
    tmp_path: Path, key: str | None, reason: str, write_memory: Any, clustered: Any, capsys: Any
) -> None:
    build(tmp_path, key, write_memory, clustered)
    np.save(tmp_path / "query.npy", np.eye(D)[:1])
    search = ["search", str(tmp_path), "--vector", str(tmp_path / "query.npy")]
    assert main([*search, "--serve-format", "fastscan"]) == 2
    assert reason in capsys.readouterr().err
    assert main(search) == 0
    with pytest.raises(UsageError, match="plain or fastscan"):
        Memory.open(tmp_path, serve_format="slow")  # type: ignore[arg-type]
