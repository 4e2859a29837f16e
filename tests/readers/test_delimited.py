"""Every line of a CSV or TSV is a row, a reject or a named break, whatever quotes and line ends it holds."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.tars import picture
from memory_builder.errors import SourceError
from memory_builder.readers import listing
from memory_builder.readers.delimited import SEVERAL_LINES, STRAY_QUOTE
from memory_builder.readers.listing import open_listing
from memory_builder.readers.read import Pair, Reject, Truncated, read_pairs
from memory_builder.readers.shard_uri import PAIRS_A_SHARD, Piece


def captions(path: Path, text: str | bytes) -> tuple[list[str | None], list[str], Counter[str]]:
    """Captions of the pairs, reasons of the rejects, and the notes of a listing with this content."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape"))
    notes: Counter[str] = Counter()
    items = list(read_pairs(str(path), require="text", notes=notes))
    assert not [item for item in items if isinstance(item, Truncated)]
    kept = [item.caption for item in items if isinstance(item, Pair)]
    return kept, [item.reason for item in items if isinstance(item, Reject)], +notes


RAGGED = "row has another number of columns than the first line"
LISTINGS: dict[str, tuple[str, list[str], list[str], dict[str, int]]] = {
    # content → captions, reasons, notes
    "opened.tsv": (
        'name\tcaption\na.png\t"one\nb.png\ttwo\nc.png\t3" pipe\n',
        ['"one', "two", '3" pipe'],
        [],
        {STRAY_QUOTE: 1},
    ),
    "two strays.tsv": (
        'name\tcaption\na.png\t"one\nb.png\ttwo\nc.png\tthree"\nd.png\tfour\n',
        ['"one', "two", 'three"', "four"],
        [],
        {STRAY_QUOTE: 1},
    ),
    "last row.tsv": (
        'name\tcaption\na.png\tone\nb.png\t"never closed',
        ["one", '"never closed'],
        [],
        {STRAY_QUOTE: 1},
    ),
    "opened.csv": (
        'name,caption\na.png,"one\nb.png,two\nc.png,three\n',
        ['"one', "two", "three"],
        [],
        {STRAY_QUOTE: 1},
    ),
    "two strays.csv": (
        'name,caption\na.png,"one\nb.png,two\nc.png,three"\nd.png,four\n',
        ['"one', "two", 'three"', "four"],
        [],
        {STRAY_QUOTE: 1},
    ),
    "closed behind a comma.csv": (
        'name,caption\na.png,"one, and more\nb.png,"two, and more"\n',
        ["one, and more", "two, and more"],
        [],
        {STRAY_QUOTE: 1},
    ),
    "inner.csv": (
        'name,caption\na.png,"a "white" square"\nb.png,two\n',
        ['"a "white" square"', "two"],
        [],
        {STRAY_QUOTE: 1},
    ),
    "several lines.csv": (
        'name,caption\na.png,"first\nsecond, line"\nb.png,"x\r\ny"\n',
        ["first\nsecond, line", "x\r\ny"],
        [],
        {SEVERAL_LINES: 2},
    ),
    "escaped.csv": ('name,caption\na.png,"say ""hi"", twice"\n', ['say "hi", twice'], [], {}),
    "ragged.csv": ("name,caption\na.png,one,two\nb.png\nc.png,three\n", ["three"], [RAGGED, RAGGED], {}),
    "blank lines.csv": ("name,caption\n\na.png,one\n\r\n\nb.png,two\n", ["one", "two"], [], {}),
    "crlf.csv": ('name,caption\r\na.png,one\r\nb.png,"two"\r\n', ["one", "two"], [], {}),
    "cr alone.csv": ("name,caption\ra.png,one\rb.png,two", ["one", "two"], [], {}),
    "cr between rows.tsv": ("name\tcaption\na.png\tone\rb.png\ttwo\nc.png\tthree\n", ["one", "two", "three"], [], {}),
    "cr in a cell.tsv": ("name\tcaption\na.png\tone\rmore\nb.png\ttwo\n", ["one\rmore", "two"], [], {}),
    "nul.csv": ("name,caption\na.png,o\0ne\nb.png,two\n", ["o\0ne", "two"], [], {}),
    "bom.csv": ("\ufeffname,caption\na.png,one\n", ["one"], [], {}),
    "bom and quotes.csv": ('\ufeff"name","caption"\n"a.png","one"\n', ["one"], [], {}),
    "line separators.csv": ("name,caption\na.png,o\u2028n\x0be\x85\nb.png,two\n", ["o\u2028n\x0be", "two"], [], {}),
    "latin.csv": ("name,caption\na.png,caf\udce9\nb.png,two\n", ["two"], ["row is not UTF-8"], {}),
}


@pytest.mark.parametrize("name", LISTINGS)
def test_every_line_is_a_row_or_a_reject(tmp_path: Path, name: str) -> None:
    text, kept, reasons, notes = LISTINGS[name]
    assert captions(tmp_path / name, text) == (kept, reasons, notes)


def test_names_that_come_twice_and_columns_of_any_case_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("Name,Caption,note,note\na.png,one,x,y\n")
    (pair,) = read_pairs(str(path), require="text")
    assert isinstance(pair, Pair)
    assert pair.caption == "one"
    assert (pair.fields["note"], pair.fields["note.1"]) == ("x", "y")


def test_utf_16_is_refused_with_the_command_that_converts_it(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("name,caption\na.png,one\n".encode("utf-16"))
    with pytest.raises(SourceError, match=r"UTF-16.*iconv"):
        list(read_pairs(str(tmp_path / "a.csv")))


@pytest.mark.parametrize("text", ["", "\n\n", "name,caption\n", '{"a": 1}'])
def test_a_listing_without_rows_is_an_error_or_holds_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / ("a.jsonl" if text.startswith("{") else "a.csv")
    path.write_text(text)
    if text.startswith("{"):
        assert [item.reason for item in read_pairs(str(path), require="text", caption_key="a")] == [
            "field a is not a text"
        ]
    else:
        with pytest.raises(SourceError, match="empty"):
            list(read_pairs(str(path), require="text"))


CELLS = st.text(st.sampled_from('ab",\n\r \tü'), max_size=6)


@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=12), st.sampled_from(["a.csv", "b.tsv"]))
def test_pieces_hold_the_records_of_the_whole(tmp_path_factory: pytest.TempPathFactory, rows: list, name: str) -> None:
    """Wherever a listing is cut between its records, what follows is read as it is in one go."""
    path = tmp_path_factory.mktemp("cut") / name
    delimiter = "," if name.endswith("csv") else "\t"
    text = f"x{delimiter}y\n" + "".join(f"{a}{delimiter}{b}\n" for a, b in rows)
    path.write_bytes(text.encode())
    with open_listing(str(path)) as whole:
        records = list(whole.records(whole.begin, whole.size))
        for begin, _ in records:
            assert list(whole.records(begin, whole.size)) == [r for r in records if r[0] >= begin]
        cut = records[len(records) // 2][0] if records else whole.begin
        parts = [*whole.records(whole.begin, cut), *whole.records(cut, whole.size)]
    assert parts == records


@pytest.mark.parametrize("packed", ["gz", "zst", "bz2", "xz"])
def test_a_compressed_listing_is_read_in_pieces_too(tmp_path: Path, packed: str) -> None:
    import bz2
    import gzip
    import lzma

    import pyarrow as pa

    n = PAIRS_A_SHARD + 5
    text = ("caption\n" + "".join(f"row {i}\n" for i in range(n))).encode()
    packs = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}
    data = packs[packed](text) if packed in packs else pa.Codec("zstd").compress(text).to_pybytes()
    path = tmp_path / f"rows.csv.{packed}"
    path.write_bytes(data)
    plain_name = tmp_path / "rows.csv"  # its bytes say what it is
    plain_name.write_bytes(data)
    for file in (path, plain_name):
        pieces = listing.pieces(str(file))
        assert [piece.items for piece in pieces] == [(0, PAIRS_A_SHARD), (PAIRS_A_SHARD, n)]
        last = list(listing.read(str(file), pieces[1], _rules()))
        assert [pair.caption for pair in last if isinstance(pair, Pair)] == [
            f"row {i}" for i in range(PAIRS_A_SHARD, n)
        ]
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(SourceError, match="decompressed"):
        list(listing.read(str(path), Piece(), _rules()))


def _rules():
    from memory_builder.readers.pairs import PairRules

    return PairRules(require="text")


def test_a_stray_quote_costs_no_picture(tmp_path: Path) -> None:
    """The rows behind a stray quote became part of its caption: their pictures were gone, and nothing said so."""
    names = [f"{i}.png" for i in range(6)]
    for i, name in enumerate(names):
        (tmp_path / name).write_bytes(picture(i))
    texts = ["one", '"two', "three", 'a "white" square', "five", 'six"']
    path = tmp_path / "pairs.tsv"
    path.write_text("image\tcaption\n" + "".join(f"{n}\t{t}\n" for n, t in zip(names, texts, strict=True)))
    pairs = [item for item in read_pairs(str(path)) if isinstance(item, Pair)]
    assert [(pair.member, pair.caption) for pair in pairs] == list(zip(names, texts, strict=True))
    assert [pair.image for pair in pairs] == [picture(i) for i in range(6)]
