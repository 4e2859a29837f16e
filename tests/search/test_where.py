"""A filter keeps the rows that SQL keeps, and a filtered search finds what filtering an exact search finds."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memory_builder.base.runner import LocalRunner
from memory_builder.catalog.row_bitmap import RowBitmap
from memory_builder.catalog.rows import Rows
from memory_builder.errors import CorruptMemoryError, UsageError
from memory_builder.indexing.config import IndexConfig
from memory_builder.indexing.driver import index as index_memory
from memory_builder.memory import Memory
from memory_builder.search.where import matching_rows, parse
from memory_builder.storage.store import Store

N, D, SHARD = 600, 16, 200
COLUMNS = {"language": "string", "score": "float", "n": "int", "safe": "bool"}
LANGUAGES = ["en", "de", "fr", "zh_CN", "50%", "it's", "", None]
Write = Callable[..., Store]


def fields(row: int) -> dict[str, Any]:
    some: dict[str, Any] = {
        "language": LANGUAGES[row % 8],
        "score": [0.25, -1.5, 3.0, None][row % 4],
        "n": [None, -5, 0, 7, 3_000_000_000][row % 5],
        "safe": [True, False, None][row % 3],
    }
    return {name: value for name, value in some.items() if value is not None}


@pytest.fixture(scope="module")
def memories(tmp_path_factory: pytest.TempPathFactory, write_memory: Write, clustered: Any) -> dict[str, Memory]:
    """The same rows under an exact index, an inverted file, and one with lossy codes."""
    memories = {}
    images, texts = clustered(N, D, seed=0)
    for key in ("IDMap2,Flat", "IVF8,Flat", "IVF8,PQ8x4np"):
        root = tmp_path_factory.mktemp("memory")
        write_memory(root, images, texts, shard_rows=SHARD, columns=COLUMNS, fields=fields)
        config = IndexConfig(index_key=key, train_threads=1, part_rows=SHARD)
        index_memory(str(root), keys=("image",), config=config, runner=LocalRunner())
        memories[key] = Memory.open(root).delete(ids=range(10))
    return memories


@pytest.fixture(scope="module")
def rows(memories: dict[str, Memory]) -> Rows:
    store = memories["IDMap2,Flat"].store
    return Rows(store, memories["IDMap2,Flat"].commits, D)


@pytest.fixture(scope="module")
def table() -> sqlite3.Connection:
    """The same metadata in another engine."""
    connection = sqlite3.connect(":memory:")
    connection.execute("PRAGMA case_sensitive_like = ON")
    connection.execute("CREATE TABLE t (id, language, score, n, safe, width, caption)")
    for i in range(N):
        row = fields(i)
        values = [row.get(name) for name in COLUMNS]
        row_id = (i // SHARD << 32) | i % SHARD
        connection.execute("INSERT INTO t VALUES (?, ?, ?, ?, ?, 64, ?)", [row_id, *values, f"caption {i}"])
    return connection


number = st.one_of(st.integers(-10, 10), st.sampled_from([3_000_000_000, 0.25, -1.5, 63.9, 1e3])).map(str)
string = st.sampled_from(["en", "de", "it's", "zh_CN", "", "EN", "zz"]).map(lambda s: "'" + s.replace("'", "''") + "'")
pattern = st.sampled_from(["%", "e_", "zh%", "%'%", "caption _1", "%5%", "EN", ""]).map(
    lambda s: "'" + s.replace("'", "''") + "'"
)
numeric, textual = st.sampled_from(["score", "n", "width"]), st.sampled_from(["language", "caption"])
compared = st.sampled_from(["=", "<>", "!=", "<", "<=", ">", ">="])
leaf = st.one_of(
    st.tuples(numeric, compared, number).map(" ".join),
    st.tuples(number, compared, numeric).map(" ".join),
    st.tuples(textual, compared, string).map(" ".join),
    st.tuples(numeric, compared, numeric).map(" ".join),
    st.tuples(numeric, number, number).map(lambda x: f"{x[0]} BETWEEN {x[1]} AND {x[2]}"),
    st.tuples(numeric, number, number).map(lambda x: f"{x[0]} NOT BETWEEN {x[1]} AND {x[2]}"),
    st.tuples(numeric, st.lists(number, min_size=1, max_size=3)).map(lambda x: f"{x[0]} IN ({', '.join(x[1])})"),
    st.tuples(textual, st.lists(string, min_size=1, max_size=3)).map(lambda x: f"{x[0]} NOT IN ({', '.join(x[1])})"),
    st.tuples(textual, pattern).map(lambda x: f"{x[0]} LIKE {x[1]}"),
    st.tuples(textual, pattern).map(lambda x: f"{x[0]} NOT LIKE {x[1]}"),
    st.sampled_from(["language", "score", "safe"]).map(lambda name: f"{name} IS NULL"),
    st.sampled_from(["language", "score", "safe"]).map(lambda name: f"{name} IS NOT NULL"),
    st.sampled_from(["safe", "safe = TRUE", "safe <> FALSE", "safe IN (TRUE)", "NOT safe"]),
)
filters = st.recursive(
    leaf,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["AND", "OR", "and"]), inner).map(lambda x: f"({x[0]}) {x[1]} ({x[2]})"),
        inner.map(lambda x: f"NOT ({x})"),
    ),
    max_leaves=5,
)
REPEATED = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)


@REPEATED
@given(where=filters)
def test_a_filter_keeps_what_sql_keeps(rows: Rows, table: sqlite3.Connection, where: str) -> None:
    expected = [i for (i,) in table.execute(f"SELECT id FROM t WHERE {where} ORDER BY id")]
    found = matching_rows(rows, where)
    assert (found.ids().tolist(), len(found)) == (expected, len(expected))


@pytest.mark.parametrize("key", ["IDMap2,Flat", "IVF8,Flat", "IVF8,PQ8x4np"])
@pytest.mark.parametrize("way", ["scored", "widened", "selected"])
def test_a_filtered_search_finds_what_filtering_an_exact_search_finds(
    memories: dict[str, Memory], table: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch, key: str, way: str
) -> None:
    memory = memories[key]
    if way != "scored":
        monkeypatch.setattr("memory_builder.search.filtered.FEW_ROWS", 0)
    monkeypatch.setattr("memory_builder.search.filtered.WIDEST", 0 if way == "selected" else 10**9)
    queries = np.random.default_rng(0).standard_normal((5, D)).astype(np.float32)

    @settings(REPEATED, max_examples=25)
    @given(where=filters, k=st.sampled_from([1, 10, N + 5]))
    def check(where: str, k: int) -> None:
        kept = [i for (i,) in table.execute(f"SELECT id FROM t WHERE {where} ORDER BY id") if i >= 10]
        hits = memory.search(vectors=queries, k=k, where=where, nprobe=8, refine=N)
        width = min(k, len(kept))
        assert (hits.ids[:, width:] == -1).all()
        assert np.isneginf(hits.scores[:, width:]).all()
        vectors = memory.vectors(kept)
        exact = queries / np.linalg.norm(queries, axis=1, keepdims=True) @ vectors.T
        np.testing.assert_allclose(hits.scores[:, :width], -np.sort(-exact, axis=1)[:, :width], atol=1e-5)
        assert np.isin(hits.ids[:, :width], kept).all()
        assert all(len(set(row[:width].tolist())) == width for row in hits.ids)

    check()


def test_a_filter_that_keeps_few_rows_finds_k_of_them_at_the_tuned_effort(
    memories: dict[str, Memory], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memory_builder.search.filtered.FEW_ROWS", 0)
    memory = memories["IVF8,Flat"]
    hits = memory.search(vectors=memory.vectors([50]), k=10, where="caption LIKE 'caption 5_'")
    assert (hits.ids >= 0).all()


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("depth > 1", "no column depth: the columns are key, caption, url, width"),
        ("width = 'wide'", "width is a number and 'wide' a string: they cannot be compared"),
        ("language > 5", "language is a string and 5 a number"),
        ("safe > FALSE", "true and false have no order"),
        ("width", "width is a number, not a condition"),
        ("width = NULL", "write IS NULL"),
        ("width = 1 AND", "cannot be read"),
        ("width = 1; n = 2", "expected one condition"),
        ("", "expected one condition"),
        ("1 = 1", "names no column"),
        ("lower(language) = 'en'", r"LOWER\(language\) \(LOWER\) is not allowed"),
        ("width + 1 = 2", r"width \+ 1 \(ADD\) is not allowed"),
        ("n IN (SELECT 1)", "IN with query"),
        ("n IN ()", "the list is empty"),
        ("n IN (width)", "only numbers"),
        ("n IN (1, 'a')", "n is a number and 'a' a string"),
        ("t.width = 1", "COLUMN with table"),
        ("safe IS TRUE", "IS NULL and IS NOT NULL are"),
        ("language LIKE caption", "LIKE takes a column of strings"),
        ("language LIKE 'a' ESCAPE 'b'", "ESCAPE"),
        ("n = 99999999999999999999999", "not a number that can be compared"),
        ("DROP TABLE t", "DROP"),
        ("NOT " * 5_000 + "safe", "nested too deep"),
    ],
)
def test_what_is_no_filter_is_refused_by_name(memories: dict[str, Memory], where: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        memories["IDMap2,Flat"].search(vectors=np.ones(D), where=where)


def test_a_long_list_is_no_deep_nesting() -> None:
    schema = pa.schema([("n", pa.int64())])
    assert parse(f"n IN ({', '.join(map(str, range(5_000)))})", schema).columns == ("n",)


def test_damaged_metadata_is_named(tmp_path: Path, write_memory: Write, clustered: Any) -> None:
    store = write_memory(tmp_path, *clustered(20, D, seed=0))
    index_memory(str(tmp_path), keys=("image",), config=IndexConfig(), runner=LocalRunner())
    store.put("metadata/metadata_00000.parquet", b"PAR1")
    with pytest.raises(CorruptMemoryError, match="metadata_00000"):
        Memory.open(tmp_path).search(vectors=np.ones(D), where="width > 1")


@given(st.dictionaries(st.integers(0, 2**21 - 1), st.lists(st.booleans(), min_size=1, max_size=40), max_size=5))
def test_a_row_set_is_a_set_of_rows(shards: dict[int, list[bool]]) -> None:
    rows = RowBitmap((ordinal, np.array(mask)) for ordinal, mask in sorted(shards.items()))
    ids = [(ordinal << 32) | row for ordinal, mask in sorted(shards.items()) for row, is_in in enumerate(mask) if is_in]
    assert (rows.ids().tolist(), len(rows)) == (ids, len(ids))
    asked = np.array([-1, *ids, *((o << 32) | r for o in [*shards, 7] for r in range(50))], np.int64)
    assert rows.contains(asked[None])[0].tolist() == [i in set(ids) for i in asked.tolist()]
    for ordinal, mask in shards.items():
        assert np.array_equal(rows.mask(ordinal), mask)
