"""Parquet files, listings and folders of pictures give the pairs that a tar of the same pictures gives."""

import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.tars import good_pairs, picture, tar_bytes
from memory_builder.errors import SourceError
from memory_builder.readers.discover import current_etag, find_sources
from memory_builder.readers.fetch import Missing, PictureRef, read_pictures
from memory_builder.readers.link_policy import LinkPolicy
from memory_builder.readers.read import Pair, Reject, Truncated, read_member, read_pairs
from memory_builder.readers.shard_uri import PAIRS_A_SHARD, split_uri

OWN = LinkPolicy(follows_named=True)
"""Of what a test names itself."""

if TYPE_CHECKING:
    from helpers.s3 import S3

PICTURES = [picture(seed) for seed in range(5)]
CAPTIONS = [f"picture {i}" for i in range(5)]


def read(where: str | Path, **options: Any) -> tuple[list[Pair], list[tuple[str, str]], list[Truncated]]:
    """Pairs, rejects and breaks of every shard found there."""
    items = [item for source in find_sources([str(where)]) for item in read_pairs(source.uri, **options)]
    return (
        [item for item in items if isinstance(item, Pair)],
        [(item.key, item.reason) for item in items if isinstance(item, Reject)],
        [item for item in items if isinstance(item, Truncated)],
    )


def write_parquet(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(columns), path, **options)
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with the five pictures, 0.png to 4.png."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, data in enumerate(PICTURES):
        (folder / f"{i}.png").write_bytes(data)
    return folder


def write_csv(path: Path, rows: list[list[Any]], delimiter: str = ",") -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


SHAPES: dict[str, Callable[[Path], Path]] = {
    "bytes": lambda at: write_parquet(at / "x.parquet", {"jpg": PICTURES, "caption": CAPTIONS, "n": range(5)}),
    "struct": lambda at: write_parquet(
        at / "x.parquet",
        {"image": [{"bytes": data, "path": "0.png"} for data in PICTURES], "text": CAPTIONS, "n": range(5)},
    ),
    "struct of paths": lambda at: write_parquet(
        at / "x.parquet",
        {"image": [{"bytes": None, "path": f"pictures/{i}.png"} for i in range(5)], "text": CAPTIONS, "n": range(5)},
    ),
    "paths": lambda at: write_parquet(
        at / "x.parquet", {"path": [f"pictures/{i}.png" for i in range(5)], "caption": CAPTIONS, "n": range(5)}
    ),
    "uris": lambda at: write_parquet(
        at / "x.parquet", {"url": [f"file://{at}/pictures/{i}.png" for i in range(5)], "TEXT": CAPTIONS, "n": range(5)}
    ),
    "csv": lambda at: write_csv(
        at / "x.csv", [["path", "caption", "n"], *([f"pictures/{i}.png", CAPTIONS[i], i] for i in range(5))]
    ),
    "tsv": lambda at: write_csv(
        at / "x.tsv", [["n", "caption", "path"], *([i, CAPTIONS[i], at / f"pictures/{i}.png"] for i in range(5))], "\t"
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_table_gives_its_pairs_in_order(tmp_path: Path, pictures: Path, shape: str) -> None:
    assert pictures.exists()
    table = SHAPES[shape](tmp_path)
    pairs, rejects, breaks = read(table)
    assert (rejects, breaks) == ([], [])
    assert [pair.image for pair in pairs] == PICTURES
    assert [pair.caption for pair in pairs] == CAPTIONS
    assert [pair.key for pair in pairs] == [f"{i:09d}" for i in range(5)]
    assert [int(pair.fields["n"]) for pair in pairs] == list(range(5))
    for pair in pairs:
        assert pair.member
        assert read_member(str(table), pair.member, OWN) == pair.image
    assert (pairs[0].fields.get("url") is not None) == (shape == "uris")


@pytest.mark.usefixtures("pictures")
def test_jsonl_rows_stand_on_their_own(tmp_path: Path) -> None:
    lines = [
        json.dumps({"file_name": "pictures/0.png", "caption": "one", "key": "a"}),
        "",
        '{"file_name": "pictures/1.png", "caption": ',
        json.dumps(["no", "object"]),
        json.dumps({"file_name": "pictures/2.png", "key": "c"}),
        json.dumps({"caption": "no picture", "key": "d"}),
        json.dumps({"file_name": "pictures/9.png", "caption": "gone", "key": "e"}),
        json.dumps({"file_name": "../secret.png", "caption": "x", "key": "f"}),
        json.dumps({"file_name": "ftp://host/x.png", "caption": "x", "key": "g"}),
        json.dumps({"file_name": 7, "caption": "x", "key": "h"}),
        json.dumps({"file_name": "pictures/3.png", "caption": ["", "two"], "key": "i"}),
        json.dumps({"file_name": "pictures/3.png", "caption": "again", "key": "a"}),
    ]
    data = "\n".join(lines).encode() + b'\n{"file_name": "pictures/4.png", "caption": "caf\xe9"}'
    (tmp_path / "x.jsonl").write_bytes(data)
    pairs, rejects, _ = read(tmp_path / "x.jsonl")
    assert [(pair.key, pair.caption, pair.image) for pair in pairs] == [
        ("a", "one", PICTURES[0]),
        ("i", "two", PICTURES[3]),
    ]
    assert rejects == [
        ("000000001", "json cannot be parsed"),
        ("000000002", "json is not an object"),
        ("c", "no caption"),
        ("d", "no image"),
        ("e", "no such file"),
        ("f", "link leaves its folder"),
        ("g", "link of a kind that is not followed (ftp)"),
        ("h", "column file_name holds neither a picture nor a path"),
        ("a", "duplicate key"),
        ("000000011", "row is not UTF-8"),
    ]


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("first", ['{"path": "pictures/9.png"', '{"path": "pictures/9.png"}', "[]"])
def test_a_jsonls_first_line_may_be_damaged_or_lack_what_others_have(tmp_path: Path, first: str) -> None:
    rows = [json.dumps({"path": f"pictures/{i}.png", "text": CAPTIONS[i]}) for i in range(5)]
    (tmp_path / "x.jsonl").write_text("\n".join([first, *rows]))
    pairs, rejects, _ = read(tmp_path / "x.jsonl", require="image")
    assert [pair.caption for pair in pairs] == CAPTIONS
    assert [key for key, _ in rejects] == ["000000000"]


@pytest.mark.usefixtures("pictures")
def test_csv_quotes_gaps_and_its_encoding(tmp_path: Path) -> None:
    text = (
        b"\xef\xbb\xbfpath,caption\r\n"
        b'pictures/0.png,"two\nlines, and ""quotes"""\r\n'
        b"pictures/1.png\r\n"
        b"\r\n"
        b",no path\r\n"
        b"pictures/2.png,caf\xe9\r\n"
        b"pictures/3.png,last"
    )
    (tmp_path / "x.csv").write_bytes(text)
    pairs, rejects, _ = read(tmp_path / "x.csv")
    assert [(pair.key, pair.caption) for pair in pairs] == [
        ("000000000", 'two\nlines, and "quotes"'),
        ("000000004", "last"),
    ]
    assert rejects == [
        ("000000001", "row has another number of columns than the first line"),
        ("000000002", "no image"),
        ("000000003", "row is not UTF-8"),
    ]


def test_a_table_from_afar_must_not_name_files_of_this_machine(tmp_path: Path, s3: "S3") -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(PICTURES[0])
    root = s3.url
    fs, path = fsspec.core.url_to_fs(root)
    rows = [
        ["path", "caption"],
        [str(secret), "x"],
        [f"file://{secret}", "x"],
        ["in/1.png", "y"],
        [f"{root}/in/1.png", "z"],
    ]
    buffer = io.StringIO()
    csv.writer(buffer).writerows(rows)
    fs.pipe({f"{path}/x.csv": buffer.getvalue().encode(), f"{path}/in/1.png": PICTURES[1]})
    pairs, rejects, _ = read(f"{root}/x.csv")
    assert [(pair.caption, pair.image) for pair in pairs] == [("y", PICTURES[1]), ("z", PICTURES[1])]
    assert [reason for _, reason in rejects] == ["link to a local file in a table that is not local"] * 2


@pytest.mark.usefixtures("pictures")
def test_a_link_that_nothing_installed_can_follow_is_refused_with_what_is_lacking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    table = write_csv(tmp_path / "x.csv", [["path", "caption"], ["gs://bucket/x.png", "x"], ["pictures/0.png", "y"]])
    pairs, rejects, _ = read(table)
    assert [pair.caption for pair in pairs] == ["y"]
    ((_, lacking),) = rejects
    assert "install gcsfs" in lacking
    assert dict(read_pictures(str(table), [PictureRef("gs://bucket/x.png")], OWN)) == {0: Missing(lacking)}
    with pytest.raises(SourceError, match="install gcsfs"):
        read_member(str(table), "gs://bucket/x.png", OWN)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "parquet, one group"])
def test_large_tables_become_many_shards_with_the_same_rows(tmp_path: Path, kind: str, monkeypatch: Any) -> None:
    monkeypatch.setattr("memory_builder.readers.discover.TABLES_SPLIT_FROM_BYTES", 0)
    n = 2 * PAIRS_A_SHARD + 5
    captions = [f"caption {i}" + ("\n" if i % 1000 == 0 else "") for i in range(n)]
    path = tmp_path / f"x.{kind.split(',', 1)[0]}"
    if kind == "csv":
        write_csv(path, [["caption"], *([caption] for caption in captions)])
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({"caption": caption}) + "\n" for caption in captions))
    else:
        write_parquet(path, {"caption": captions}, row_group_size=n if "one" in kind else 3_000)
    sources = find_sources([str(path)])
    assert len(sources) == 3
    sizes = [sum(1 for _ in read_pairs(source.uri, require="text")) for source in sources]
    assert sum(sizes) == n
    assert max(sizes) <= PAIRS_A_SHARD
    pairs, _, _ = read(path, require="text")
    assert [pair.caption for pair in pairs] == [caption.strip() for caption in captions]
    assert len({pair.key for pair in pairs}) == n
    assert {split_uri(source.uri)[0] for source in sources} == {str(path)}
    assert {current_etag(source.uri) for source in sources} == {sources[0].etag}


def test_tables_that_lack_a_column_say_what_they_have(tmp_path: Path) -> None:
    table = write_parquet(tmp_path / "x.parquet", {"who": ["a"], "what": ["b"]})
    with pytest.raises(SourceError, match=r"columns 'who', 'what': .*--image-key"):
        list(read_pairs(str(table)))
    with pytest.raises(SourceError, match=r"no 'nope': give another --image-key"):
        list(read_pairs(str(table), image_key="nope"))
    with pytest.raises(SourceError, match="--caption-key"):
        list(read_pairs(str(table), image_key="who"))
    (pair,) = read_pairs(str(table), require="text", caption_key="what")
    assert isinstance(pair, Pair)
    assert (pair.caption, pair.image) == ("b", None)


@pytest.mark.parametrize(("name", "content"), [("x.parquet", b"PAR1 no"), ("x.csv", b""), ("x.jsonl", b"\n\n")])
def test_a_table_that_is_none_fails_as_a_shard(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    (source,) = find_sources([str(tmp_path / name)])
    with pytest.raises(SourceError, match=name):
        list(read_pairs(source.uri))


def test_a_parquet_file_damaged_half_way_keeps_what_came_before(tmp_path: Path) -> None:
    table = write_parquet(tmp_path / "x.parquet", {"caption": [f"{i:0100d}" for i in range(900)]}, row_group_size=300)
    with pq.ParquetFile(table) as opened:
        at = opened.metadata.row_group(2).column(0).data_page_offset
    data = bytearray(table.read_bytes())
    data[at : at + 40] = b"\xff" * 40
    table.write_bytes(data)
    pairs, _, breaks = read(table, require="text")
    assert len(pairs) == 600
    assert breaks[0].reason.startswith("breaks off at row 600: ")


def not_utf8(texts: list[bytes]) -> pa.Array:
    """A column as careless writers leave it."""
    return pa.array(texts, pa.binary()).view(pa.string())


def test_a_cell_that_cannot_be_read_costs_its_row_alone(tmp_path: Path) -> None:
    columns = {
        "key": ["a", "b", "c", "d", "e"],
        "caption": not_utf8([b"one", b"caf\xe9", b"three", b"four", b"five"]),
        "taken": pa.array([0, 0, 1 << 60, 0, 0], pa.timestamp("us")),
    }
    pairs, rejects, breaks = read(write_parquet(tmp_path / "x.parquet", columns), require="text")
    assert [(pair.key, pair.caption) for pair in pairs] == [("a", "one"), ("d", "four"), ("e", "five")]
    assert rejects == [("b", "column caption cannot be read"), ("c", "column taken cannot be read")]
    assert breaks == []


def test_folders_are_shards_and_changes_show(pictures: Path) -> None:
    (pictures / "cats").mkdir()
    (pictures / "cats" / "a.JPG").write_bytes(picture(kind="JPEG"))
    (pictures / "cats" / "a.txt").write_text("a cat")
    (pictures / "cats" / "b.webp").write_bytes(picture(kind="WEBP"))
    (pictures / "cats" / "b.json").write_text('{"caption": "a json cat", "n": 3}')
    (pictures / "cats" / "notes.md").write_text("not ours")
    (pictures / "0.txt").write_text("zero")
    root, cats = find_sources([str(pictures)])
    assert [split_uri(source.uri)[1].folder for source in (root, cats)] == ["", "cats"]
    pairs, rejects, _ = read(pictures)
    assert [(pair.key, pair.caption) for pair in pairs] == [
        ("0", "zero"),
        ("cats/a", "a cat"),
        ("cats/b", "a json cat"),
    ]
    assert pairs[2].fields["n"] == 3
    assert rejects == [(str(i), "no caption") for i in range(1, 5)]
    assert read_member(cats.uri, "b.webp", OWN) == picture(kind="WEBP")
    assert current_etag(cats.uri) == cats.etag
    (pictures / "cats" / "a.txt").write_text("another cat")
    assert current_etag(cats.uri) != cats.etag
    assert current_etag(root.uri) == root.etag


def test_files_of_a_folder_may_have_dots_in_their_names(tmp_path: Path) -> None:
    for i, name in enumerate(("at 10.11.12", "at 10.11.13", "at 10.11")):
        (tmp_path / f"{name}.PNG").write_bytes(PICTURES[i])
        (tmp_path / f"{name}.txt").write_text(CAPTIONS[i])
    (tmp_path / "list.csv").write_text("it,describes,them\n")
    (tmp_path / "png").write_bytes(b"a name without a suffix")
    pairs, rejects, _ = read(tmp_path)
    assert [(pair.key, pair.caption, pair.image) for pair in pairs] == [
        ("at 10.11", CAPTIONS[2], PICTURES[2]),
        ("at 10.11.12", CAPTIONS[0], PICTURES[0]),
        ("at 10.11.13", CAPTIONS[1], PICTURES[1]),
    ]
    assert rejects == []


def test_folders_on_an_object_store(s3: "S3") -> None:
    root = s3.url
    fs, path = fsspec.core.url_to_fs(root)
    fs.pipe({f"{path}/pics/{i}.png": data for i, data in enumerate(PICTURES)} | {f"{path}/pics/1.txt": b"one"})
    pairs, rejects, _ = read(f"{root}/pics")
    assert [(pair.key, pair.caption, pair.image) for pair in pairs] == [("1", "one", PICTURES[1])]
    assert len(rejects) == 4


def test_a_damaged_table_beside_a_tar_fails_the_shard_and_one_without_keys_is_no_table_of_it(tmp_path: Path) -> None:
    (tmp_path / "00000.tar").write_bytes(tar_bytes(good_pairs(["a"])))
    (tmp_path / "00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(SourceError, match=r"00000\.parquet, the table beside a shard, cannot be read"):
        list(read_pairs(str(tmp_path / "00000.tar")))
    write_parquet(tmp_path / "00000.parquet", {"caption": ["something else"]})
    pairs, _, _ = read(tmp_path)
    assert [(pair.key, pair.caption) for pair in pairs] == [("a", "a picture called a")]


def test_a_cell_that_cannot_be_read_beside_a_tar_costs_its_pair_alone(tmp_path: Path) -> None:
    (tmp_path / "00000.tar").write_bytes(tar_bytes(good_pairs(["a", "b", "c"])))
    write_parquet(tmp_path / "00000.parquet", {"key": ["a", "b", "c"], "title": not_utf8([b"x", b"caf\xe9", b"z"])})
    pairs, rejects, _ = read(tmp_path)
    assert [(pair.key, pair.fields["title"]) for pair in pairs] == [("a", "x"), ("c", "z")]
    assert rejects == [("b", "column title cannot be read")]


def test_the_table_beside_a_tar_is_joined_by_key(tmp_path: Path) -> None:
    """img2dataset's table holds failures too, and in another order."""
    (tmp_path / "00000.tar").write_bytes(
        tar_bytes([("b.png", PICTURES[1]), ("a.png", PICTURES[0]), *good_pairs(["c"])])
    )
    table = {
        "key": ["failed", "a", "c", "b"],
        "caption": ["f", "caption a", "from the table", "caption b"],
        "url": ["u/f", "u/a", "u/c", "u/b"],
        "status": ["failed_to_download", "success", "success", "success"],
    }
    write_parquet(tmp_path / "00000.parquet", table)
    for where in (tmp_path, tmp_path / "*", tmp_path / "00000.tar"):
        pairs, rejects, _ = read(where)
        assert rejects == []
        assert [(pair.key, pair.caption, pair.fields["url"]) for pair in pairs] == [
            ("b", "caption b", "u/b"),
            ("a", "caption a", "u/a"),
            ("c", "a picture called c", "u/c"),
        ]
