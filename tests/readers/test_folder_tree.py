"""A folder is accounted for: what is no part of its shards is counted, and every picture is a row or a reject."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.tars import good_pairs, picture, tar_bytes
from memory_builder.errors import SourceError
from memory_builder.readers.discover import current_etag, find_sources
from memory_builder.readers.file_kinds import describe_passed_over
from memory_builder.readers.link_policy import LinkPolicy
from memory_builder.readers.read import Pair, Reject, read_pairs
from memory_builder.readers.shard_uri import split_uri

if TYPE_CHECKING:
    from helpers.s3 import S3

OWN = LinkPolicy(follows_named=True)

TAR = tar_bytes(good_pairs(["a"]))


def table(**columns: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


@pytest.fixture
def tree(tmp_path: Path) -> Callable[[dict[str, bytes | str]], Path]:
    def write(files: dict[str, bytes | str]) -> Path:
        for name, content in files.items():
            path = tmp_path / "in" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return tmp_path / "in"

    return write


def shards(root: Path, pattern: str = "") -> list[str]:
    """Sources below a folder, by their names below it."""
    return [source.uri.removeprefix(f"{root}").lstrip("/") for source in find_sources([f"{root}{pattern}"])]


def read(root: Path, **options: Any) -> tuple[dict[str, str | None], list[str]]:
    """Key → caption of all pairs of a folder, and the reasons of its rejects."""
    items = [item for source in find_sources([str(root)]) for item in read_pairs(source.uri, **options)]
    kept = {item.key: item.caption for item in items if isinstance(item, Pair)}
    return kept, sorted(item.reason for item in items if isinstance(item, Reject))


PNG = picture(1)
# files → shards, what is passed over
TREES: dict[str, tuple[dict[str, bytes | str], list[str], str]] = {
    "tars and others": (
        {"a.tar": TAR, "sub/b.tar": TAR, "x.parquet": "x", "d/y.parquet": "x", "list.csv": "a,b\n1,2\n", "p.jpg": PNG},
        ["a.tar", "sub/b.tar"],
        "list.csv, 2 parquet files, p.jpg",
    ),
    "img2dataset tars": (
        {"00000.tar": TAR, "00000.parquet": table(key=["a"]), "00000_stats.json": "{}", "00001.tar": TAR},
        ["00000.tar", "00001.tar"],
        "",
    ),
    "hidden": (
        {"a.tar": TAR, "._a.tar": "x", "_tmp.tar": "x", ".git/b.tar": TAR, "__MACOSX/c.tar": "x", "_SUCCESS": ""},
        ["a.tar"],
        "5 hidden files",
    ),
    "tables in folders": (
        {"data/train-0.parquet": table(image=[PNG], caption=["x"]), "README.md": "hi", "data/.x.crc": "c"},
        ["data/train-0.parquet"],
        "README.md, 1 hidden file",
    ),
    "pictures and other pictures": (
        {"cats/a.png": PNG, "cats/a.txt": "a cat", "b.heic": "x", "c.heic": "x", "d.mov": "x", ".DS_Store": "x"},
        ["#folder=cats"],
        "2 heic files, d.mov, 1 hidden file",
    ),
    "a listing that names none of the pictures": (
        {"a.png": PNG, "a.txt": "a", "scores.csv": "id,score\n1,2\n"},
        ["#folder="],
        "scores.csv",
    ),
    "a table of links beside its pictures": (
        {"metadata.parquet": table(file_name=["a.png"], text=["x"]), "a.png": PNG, "b.png": PNG},
        ["metadata.parquet"],
        "b.png",
    ),
    "a listing of pictures elsewhere": ({"list.csv": "url,caption\nhttp://x/a.png,one\n"}, ["list.csv"], ""),
}


@pytest.mark.parametrize("name", TREES)
def test_what_is_no_part_of_the_shards_is_counted(
    tree: Callable[..., Path], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    files, expected, passed_over = TREES[name]
    root = tree(files)
    assert shards(root) == expected
    line = f"passed over in {root}: {passed_over}\n" if passed_over else ""
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_a_listing_beside_pictures_stands_for_those_it_names(
    tree: Callable[..., Path], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Hugging Face's ImageFolder: the captions were passed over, and nothing said so."""
    rows = [{"file_name": f"{c}.png", "text": f"a {c} square"} for c in ("red", "green")]
    listing = (
        "".join(json.dumps(row) + "\n" for row in rows)
        if name.endswith("jsonl")
        else "file_name,text\n" + "".join(f"{row['file_name']},{row['text']}\n" for row in rows)
    )
    root = tree({name: listing, "red.png": PNG, "green.png": picture(2), "blue.png": PNG, "more/x.png": PNG})
    assert shards(root) == ["#folder=more", name]
    assert capsys.readouterr().err == f"passed over in {root}: blue.png\n"
    kept, reasons = read(root)
    assert sorted(kept.values()) == ["a green square", "a red square"]
    assert reasons == ["no caption"]


def test_a_folder_without_shards_says_what_is_in_it(tree: Callable[..., Path]) -> None:
    root = tree({"a.zip": "x", "b.zip": "x", ".c": "x"})
    with pytest.raises(SourceError, match=r"nothing to read at .*; passed over in .*: 2 zip files, 1 hidden file"):
        find_sources([str(root)])


def test_pictures_of_one_stem_are_a_row_each(tree: Callable[..., Path]) -> None:
    """The second was in no row and no reject."""
    files = {"a.jpg": PNG, "a.png": picture(2), "a.txt": "both", "b.JPG": PNG, "b.jpg": picture(3), "b.txt": "case"}
    root = tree(files | {"c.png": PNG, "c.txt": "one"})
    kept, reasons = read(root)
    assert kept == {"a.jpg": "both", "a.png": "both", "b.JPG": "case", "b.jpg": "case", "c": "one"}
    assert reasons == []
    (source,) = find_sources([str(root)])
    again = list(read_pairs(source.uri, only=frozenset({"a.png", "c"})))
    assert [item.key for item in again] == ["a.png", "c"]
    tar = root / "x.tar"
    tar.write_bytes(tar_bytes([("k.jpg", PNG), ("k.png", picture(2)), ("k.txt", b"both")]))
    items = list(read_pairs(str(tar)))
    assert [(item.key, item.image) for item in items if isinstance(item, Pair)] == [
        ("k.jpg", PNG),
        ("k.png", picture(2)),
    ]


def test_img2datasets_folders_are_read_from_disk_and_joined_with_their_table(tree: Callable[..., Path]) -> None:
    """Its table was taken for the source, and every picture fetched from the web again."""
    keys = ["000000000", "000000001"]
    files: dict[str, bytes | str] = {"00000_stats.json": "{}"}
    for i, key in enumerate(keys):
        files |= {f"00000/{key}.jpg": picture(i), f"00000/{key}.txt": f"picture {i}"}
    urls = [f"http://127.0.0.1:9/{i}.jpg" for i in range(3)]
    files["00000.parquet"] = table(
        key=[*keys, "000000002"],
        url=urls,
        status=["success", "success", "failed_to_download"],
        similarity=[0.1, 0.2, 0.3],
    )
    root = tree(files)
    for pattern in ("", "/0*", "/*/"):
        sources = find_sources([f"{root}{pattern}"])
        items = [item for source in sources for item in read_pairs(source.uri)]
        assert [item.caption for item in items if isinstance(item, Pair)] == ["picture 0", "picture 1"]
        assert [item.fields["url"] for item in items if isinstance(item, Pair)] == urls[:2]
        assert len(items) == 2


def test_a_glob_of_folders_takes_the_folders(tree: Callable[..., Path]) -> None:
    root = tree({f"{i}/a.png": picture(i) for i in range(3)} | {f"{i}/a.txt": "x" for i in range(3)})
    assert shards(root, "/?") == shards(root, "/*/") == [f"{i}#folder=" for i in range(3)]


NAMES = [
    "photos [2020]",
    "a{1,2}",
    "{0..3}",
    "a::b",
    "100%",
    "a#b",
    "hash#items=0-3",
    "x#folder=y",
    "back\\slash",
    " a ",
    "~x",
]


@pytest.mark.parametrize("name", NAMES)
def test_what_exists_is_meant_by_its_name(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``a[1].tar`` read ``a1.tar``; most of the others were not found."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "p.png").write_bytes(PNG)
    (tmp_path / name / "p.txt").write_text("in the folder")
    (tmp_path / f"{name}.tar").write_bytes(tar_bytes([("t.png", PNG), ("t.txt", b"in the tar")]))
    (tmp_path / f"{name}.csv").write_text(f'image,caption\n"{name}/p.png",in the listing\n')
    monkeypatch.chdir(tmp_path)
    for where in (str(tmp_path / name), name):
        for suffix, caption in (("", "in the folder"), (".tar", "in the tar"), (".csv", "in the listing")):
            (source,) = find_sources([f"{where}{suffix}"])
            (pair,) = read_pairs(source.uri)
            assert isinstance(pair, Pair)
            assert pair.caption == caption
            assert current_etag(source.uri) == source.etag
    for end in (".tar", ""):
        for spelled in (f"{tmp_path}//{name}{end}", f"{tmp_path}/./{name}{end}", f"../{tmp_path.name}/{name}{end}"):
            assert find_sources([spelled]) == find_sources([f"{tmp_path}/{name}{end}"])


def test_brackets_are_a_pattern_only_where_nothing_has_that_name(tmp_path: Path) -> None:
    for name in ("a[1].tar", "a1.tar", "b1.tar"):
        (tmp_path / name).write_bytes(TAR)
    assert shards(tmp_path, "/a[1].tar") == ["a[1].tar"]
    assert shards(tmp_path, "/b[1].tar") == ["b1.tar"]


def test_a_pattern_passes_over_what_is_hidden_unless_it_says_so(tmp_path: Path) -> None:
    for name in ("a.tar", "._a.tar", ".git/b.tar", "_delta_log/c.tar", "d/_e.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(TAR)
    assert shards(tmp_path, "/**/*.tar") == shards(tmp_path, "/*.tar") == shards(tmp_path) == ["a.tar"]
    assert shards(tmp_path, "/d/_*.tar") == ["d/_e.tar"]


def test_a_link_to_a_file_and_the_file_are_one_source(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.tar").write_bytes(TAR)
    (tmp_path / "b.tar").symlink_to(tmp_path / "data" / "a.tar")
    (tmp_path / "linked").symlink_to(tmp_path / "data")
    assert len(find_sources([str(tmp_path / "b.tar"), str(tmp_path / "data"), str(tmp_path / "linked" / "a.tar")])) == 1
    (tmp_path / "pictures").mkdir()
    (tmp_path / "real.png").write_bytes(PNG)
    (tmp_path / "pictures" / "p.png").symlink_to(tmp_path / "real.png")
    (tmp_path / "pictures" / "p.txt").write_text("linked")
    assert read(tmp_path / "pictures")[0] == {"p": "linked"}


def test_a_folder_that_leads_to_itself_is_walked_once(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(TAR)
    (tmp_path / "again").symlink_to(tmp_path)
    assert shards(tmp_path) == ["a.tar"]


def test_a_picture_called_row_5_is_that_file(tmp_path: Path) -> None:
    from memory_builder.readers.read import read_member

    (tmp_path / "row 1").write_bytes(PNG)
    pq.write_table(pa.table({"path": ["row 1"], "caption": ["x"]}), tmp_path / "t.parquet")
    (pair,) = read_pairs(str(tmp_path / "t.parquet"))
    assert isinstance(pair, Pair)
    assert pair.image == PNG
    assert read_member(str(tmp_path / "t.parquet"), str(pair.member), OWN) == PNG


def test_pipes_and_links_to_nothing_are_counted_and_not_opened(
    tree: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = tree({"a.png": PNG, "a.txt": "a"})
    os.mkfifo(root / "b.png")
    (root / "c.png").symlink_to(root / "nowhere.png")
    assert read(root)[0] == {"a": "a"}
    assert capsys.readouterr().err == f"passed over in {root}: 2 pictures\n"


def test_a_picture_alone_is_no_shard(tree: Callable[..., Path]) -> None:
    with pytest.raises(SourceError, match="is a picture: name its folder"):
        find_sources([str(tree({"a.png": PNG}) / "a.png")])


def test_passed_over_is_one_line() -> None:
    names = ["a/x.parquet", "a/y.parquet", "metadata.jsonl", ".a", ".b/c", "p.jpg", "q.JPG", "none"]
    assert describe_passed_over(names) == "metadata.jsonl, none, 2 parquet files in a/, 2 pictures, 2 hidden files"


@pytest.mark.parametrize("uri", ["/a#", "/a##", "/a#items=1-2", "/a#items=1-2#", "/a#b"])
def test_names_of_shards_are_read_back(uri: str) -> None:
    from memory_builder.readers.shard_uri import Piece, join_uri

    for piece in (Piece(), Piece(items=(0, 3)), Piece(folder="x#y&z=1"), Piece(vectors="a&b.npy", modality="text")):
        assert split_uri(join_uri(uri, piece)) == (uri, piece)


def test_empty_objects_that_stand_for_folders_are_no_files(s3: "S3", capsys: pytest.CaptureFixture[str]) -> None:
    """As consoles of object stores make them."""
    client = boto3.client("s3")
    bucket, prefix = s3.url.removeprefix("s3://").split("/", 1)
    for name, content in (("", b""), ("a/", b""), ("a/b/", b""), ("a/b/x.tar", TAR), ("notes.md", b"")):
        client.put_object(Bucket=bucket, Key=f"{prefix}/{name}", Body=content)
    client.close()
    assert [source.uri for source in find_sources(s3.url)] == [f"{s3.url}/a/b/x.tar"]
    assert capsys.readouterr().err == f"passed over in {s3.url}: notes.md\n"


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
)
def test_pictures_that_a_table_names_are_not_passed_over(
    tree: Callable[..., Path], capsys: pytest.CaptureFixture[str], kind: pa.DataType
) -> None:
    names = pa.array(["red.png", "green.png"], pa.string()).cast(kind)
    root = tree(
        {"m.parquet": table(file_name=names, text=["r", "g"]), "red.png": PNG, "green.png": PNG, "blue.png": PNG}
    )
    assert shards(root) == ["m.parquet"]
    assert capsys.readouterr().err == f"passed over in {root}: blue.png\n"
    assert sorted(read(root)[0].values()) == ["g", "r"]
