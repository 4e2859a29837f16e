"""A value becomes that of its column or is null and counted; ``extra`` is JSON that any parser reads."""

import json
import uuid
from collections import Counter
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_builder.catalog.metadata import metadata_table
from memory_builder.readers.read import Pair, read_pairs
from memory_builder.readers.values import BYTES, NOT_FINITE, converted, strict_json

UTC = UTC
VALUES: list[tuple[Any, str, Any]] = [
    # cells of a CSV
    ("3.5", "float", 3.5),
    (" 7 ", "int", 7),
    ("-1e3", "float", -1000.0),
    ("4.0", "int", 4),
    ("4.5", "int", None),
    ("1_000", "int", None),
    ("0x10", "int", None),
    ("nan", "float", None),
    ("inf", "float", None),
    ("N/A", "float", None),
    ("", "float", None),
    ("٣", "int", None),
    ("9007199254740993", "int", 9007199254740993),
    ("9" * 30, "int", None),
    ("1e400", "float", None),
    ("True", "bool", True),
    ("no", "bool", False),
    ("maybe", "bool", None),
    ("2", "bool", None),
    # numbers
    (3, "float", 3.0),
    (3.0, "int", 3),
    (3.5, "int", None),
    (True, "int", 1),
    (1, "bool", True),
    (2, "bool", None),
    (float("nan"), "float", None),
    (float("inf"), "int", None),
    (1 << 63, "int", None),
    (5, "string", "5"),
    (True, "string", "true"),
    (float("nan"), "string", None),
    # what Arrow holds
    (Decimal("0.2500"), "float", 0.25),
    (Decimal("7.00"), "int", 7),
    (Decimal("NaN"), "float", None),
    (Decimal("0.10"), "string", "0.10"),
    (datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC), "string", "2020-01-02T03:04:05+00:00"),
    (datetime(1970, 1, 1, 0, 1), "int", 60),
    (date(1970, 1, 2), "float", 86400.0),
    (time(1, 2), "string", "01:02:00"),
    (b"cat", "string", "cat"),
    (b"3.5", "float", 3.5),
    (b"\xff", "string", None),
    ([1], "int", None),
    ({"a": 1}, "string", None),
    (None, "float", None),
    ("\ud800", "string", None),
]


@pytest.mark.parametrize(("value", "kind", "expected"), VALUES)
def test_a_value_becomes_that_of_its_column(value: Any, kind: str, expected: Any) -> None:
    made = converted(value, kind)
    assert (made, type(made)) == (expected, type(expected))


def test_what_does_not_fit_is_counted_and_kept() -> None:
    fields: list[dict[str, Any]] = [{"n": "3"}, {"n": "x"}, {"n": ""}, {"n": None}, {}, {"n": 1.5}]
    notes: Counter[str] = Counter()
    table = metadata_table(
        [({"key": str(i)}, row) for i, row in enumerate(fields)], {"n": "int", "gone": "float"}, notes
    )
    assert table["n"].to_pylist() == [3, None, None, None, None, None]
    assert [json.loads(extra) for extra in table["extra"].to_pylist()][1] == {"n": "x"}
    assert notes == {
        "values of n are no int: null in its column, kept in extra": 2,
        "rows have no field gone to fill its column": 6,
    }


def test_no_field_is_dropped_because_a_column_is_called_like_it() -> None:
    fields = {
        "key": "theirs",
        "width": 5,
        "sha256": "s",
        "member": "m",
        "has_image": "x",
        "extra": {"a": 1},
        "url": "u",
    }
    (row,) = metadata_table([({"key": "ours", "width": 5, "has_image": True}, fields)], {}).to_pylist()
    assert (row["key"], row["width"], row["url"]) == ("ours", 5, "u")
    kept = {"key": "theirs", "sha256": "s", "member": "m", "has_image": "x", "extra": {"a": 1}}
    assert json.loads(row["extra"]) == kept


def refuse(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


def strictly(text: str) -> Any:
    """As a strict parser reads JSON."""
    text.encode()
    return json.loads(text, parse_constant=refuse)


def test_extra_is_strict_json_at_any_depth() -> None:
    notes: Counter[str] = Counter()
    value = {
        "nan": float("nan"),
        "deep": [{"inf": float("-inf"), "bytes": b"cat"}, (b"\x00\xff", [Decimal("1.50")])],
        "when": datetime(2020, 1, 1),
        "half \ud83d": "\udc00",
        "uuid": uuid.UUID(int=1),
        "for": timedelta(seconds=1),
    }
    assert strictly(strict_json(value, notes)) == {
        "nan": None,
        "deep": [{"inf": None, "bytes": "cat"}, ["AP8=", ["1.50"]]],
        "when": "2020-01-01T00:00:00",
        "half ?": "?",
        "uuid": "00000000-0000-0000-0000-000000000001",
        "for": "0:00:01",
    }
    assert notes == {NOT_FINITE: 2, BYTES: 1}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=3), JSON, max_size=4))
def test_any_fields_are_strict_json(fields: dict[str, Any]) -> None:
    assert strictly(strict_json(fields, Counter())).keys() == {json.loads(json.dumps(key)) for key in fields}


def arrow_columns() -> dict[str, pa.Array]:
    """Two rows of every type that a parquet file can hold."""
    stamp = [datetime(2020, 1, 2, 3, 4, 5, 678901), None]
    return {
        **{
            str(kind): pa.array([1, None], kind)
            for kind in (pa.int8(), pa.uint64(), pa.float16(), pa.float32(), pa.float64())
        },
        **{
            f"timestamp {unit}": pa.array(stamp, pa.timestamp("us")).cast(pa.timestamp(unit), safe=False)
            for unit in ["s", "ms", "us", "ns"]
        },
        "with zone": pa.array(stamp, pa.timestamp("us", "Europe/Berlin")),
        "date": pa.array([date(2020, 1, 2), None]),
        "time": pa.array([time(1, 2, 3), None]),
        "duration": pa.array([timedelta(seconds=3), None]),
        "decimal128": pa.array([Decimal("1.50"), None], pa.decimal128(10, 2)),
        "decimal256": pa.array([Decimal("1.50"), None], pa.decimal256(50, 2)),
        "bool": pa.array([True, None]),
        "null": pa.nulls(2),
        "string": pa.array(["ü", None]),
        "large string": pa.array(["ü", None], pa.large_string()),
        "string view": pa.array(["ü", None], pa.string_view()),
        "dictionary": pa.array(["x", None]).dictionary_encode(),
        "list": pa.array([[1, None], None]),
        "large list": pa.array([[1.5], None], pa.large_list(pa.float64())),
        "fixed list": pa.array([[1.5, float("nan")], [1, 2]], pa.list_(pa.float32(), 2)),
        "struct": pa.array([{"a": b"cat", "b": [Decimal("1")]}, None]),
        "map": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
        "bytes in a list": pa.array([[b"\xff"], None]),
        "uuid": pa.array([uuid.UUID(int=5).bytes, None], pa.uuid()),
        "json": pa.array(['{"a": 1}', None], pa.json_()),
    }


@pytest.mark.parametrize("name", arrow_columns())
def test_every_type_that_parquet_holds_becomes_metadata(tmp_path: Path, name: str) -> None:
    column = arrow_columns()[name]
    pq.write_table(pa.table({"caption": ["one", "two"], "field": column}), tmp_path / "t.parquet")
    items = list(read_pairs(str(tmp_path / "t.parquet"), require="text"))
    assert [item.caption for item in items if isinstance(item, Pair)] == ["one", "two"]
    rows = [({"key": item.key}, item.fields) for item in items if isinstance(item, Pair)]
    for kind in ("string", "int", "float", "bool"):
        table = metadata_table(rows, {"field": kind})
        extra = [strictly(text) for text in table["extra"].to_pylist()]
        if name != "null":
            assert (table["field"][0].as_py() is None) == ("field" in extra[0])
    assert strictly(metadata_table(rows, {})["extra"][1].as_py()).get("field") == column[1].as_py()


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_texts_that_a_table_holds_as_bytes_are_texts(tmp_path: Path, kind: pa.DataType) -> None:
    """TensorFlow's tools write every text so; the column of captions was left out as one of bytes."""
    notes: Counter[str] = Counter()
    columns = {
        "png": [b"\x89", b"\x89"],
        "key": [b"k1", b"k2"],
        "caption": ["ü".encode(), b"\xff"],
        "url": [b"http://x", None],
        "thumb": [b"\0", b"\1"],
    }
    table = pa.table({name: pa.array(values, kind) for name, values in columns.items()})
    pq.write_table(table, tmp_path / "t.parquet")
    good, bad = read_pairs(str(tmp_path / "t.parquet"), require="text", notes=notes)
    assert isinstance(good, Pair)
    assert (good.key, good.caption, metadata_table([({}, good.fields)], {})["url"].to_pylist()) == (
        "k1",
        "ü",
        ["http://x"],
    )
    assert (bad.key, bad.reason) == ("k2", "field caption is not UTF-8")  # type: ignore[union-attr]
    assert notes == {"tables have a column thumb of bytes, which is left out": 1}


@pytest.mark.parametrize("spelled", ["caption", "TEXT", "Text", "alt", "captions"])
@pytest.mark.parametrize("address", ["url", "URL", "image_url"])
def test_captions_and_addresses_are_known_by_several_names(tmp_path: Path, spelled: str, address: str) -> None:
    image = np.zeros(3).tobytes()
    pq.write_table(pa.table({"image": [image], spelled: ["one"], address: ["http://x"]}), tmp_path / "t.parquet")
    (pair,) = read_pairs(str(tmp_path / "t.parquet"))
    assert isinstance(pair, Pair)
    assert (pair.caption, pair.fields["url"]) == ("one", "http://x")


def test_nanoseconds_are_kept_whether_pandas_is_installed_or_not(tmp_path: Path) -> None:
    whole, part = 1_577_934_245_000_000_000, 1_577_934_245_000_000_001
    columns = {
        "caption": ["a", "b"],
        "whole": pa.array([whole, None], pa.timestamp("ns", "UTC")),
        "part": pa.array([part, None], pa.timestamp("ns")),
        "took": pa.array([1_500, None], pa.duration("ns")),
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    pair, _ = read_pairs(str(tmp_path / "t.parquet"), require="text")
    assert isinstance(pair, Pair)
    assert pair.fields["whole"] == datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert (pair.fields["part"], pair.fields["took"]) == ("2020-01-02 03:04:05.000000001", "1500")


def test_columns_of_one_name_are_all_kept(tmp_path: Path) -> None:
    arrays = [pa.array(["one"]), pa.array(["another"]), pa.array([b"cat"])]
    pq.write_table(pa.Table.from_arrays(arrays, names=["caption", "caption", "tag"]), tmp_path / "t.parquet")
    (pair,) = read_pairs(str(tmp_path / "t.parquet"), require="text")
    assert isinstance(pair, Pair)
    assert (pair.caption, pair.fields["caption.1"], pair.fields["tag"]) == ("one", "another", b"cat")


def test_a_column_that_arrow_cannot_read_costs_itself_alone(tmp_path: Path) -> None:
    """It writes fixed lists with nulls and cannot read them."""
    notes: Counter[str] = Counter()
    lists = pa.array([[1.5, 2.5], None], pa.list_(pa.float32(), 2))
    pq.write_table(pa.table({"caption": ["one", "two"], "lists": lists, "n": [1, 2]}), tmp_path / "t.parquet")
    items = list(read_pairs(str(tmp_path / "t.parquet"), require="text", notes=notes))
    assert [item.fields for item in items if isinstance(item, Pair)] == [
        {"caption": "one", "n": 1},
        {"caption": "two", "n": 2},
    ]
    assert notes == {"tables have a column lists that Arrow cannot read, which is left out": 1}
