"""The pictures of some rows of a shard: those that are there, in one pass, and why the others are not."""

import gzip
import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from memory_builder.readers import tar_stream
from memory_builder.readers.fetch import CHANGED, Missing, PictureRef, read_pictures
from memory_builder.readers.link_policy import LinkPolicy
from memory_builder.readers.read import read_member
from memory_builder.readers.shard_uri import Piece, join_uri
from memory_builder.storage.store import sha256

OWN = LinkPolicy(follows_named=True)
"""Of what a test names itself."""

FILES = {f"{i}.{suffix}": f"{suffix} {i}".encode() * 300 for i in range(20) for suffix in ("png", "txt")}


def test_another_picture_in_the_place_of_one_that_was_embedded_is_not_taken_for_it(tmp_path: Path) -> None:
    """Its source had changed, and the row's caption and vector are of another picture."""
    (tmp_path / "a.png").write_bytes(b"one")
    pq.write_table(pa.table({"image": [b"one", b"two"], "caption": ["a", "b"]}), tmp_path / "t.parquet")
    for uri, member in ((join_uri(str(tmp_path), Piece(folder="")), "a.png"), (str(tmp_path / "t.parquet"), "row 0")):
        for digest, expected in ((sha256(b"one"), b"one"), (None, b"one"), ("0" * 64, Missing(CHANGED))):
            assert list(read_pictures(uri, [PictureRef(member, None, digest)], OWN)) == [(0, expected)]


def tar_bytes() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in FILES.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def read(uri: Path | str, *places: PictureRef) -> list[bytes | str]:
    found = dict(read_pictures(str(uri), places, OWN))
    assert sorted(found) == list(range(len(places)))
    return [picture.reason if isinstance(picture, Missing) else picture for _, picture in sorted(found.items())]


@pytest.mark.parametrize("name", ["0.tar", "0.tar.gz"])
def test_members_of_a_tar_whatever_is_asked_first(tmp_path: Path, name: str) -> None:
    data = tar_bytes()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    asked = [PictureRef("7.png"), PictureRef("nothing.png"), PictureRef("2.png"), PictureRef("19.png")]
    found = read(tmp_path / name, *asked)
    assert found == [FILES["7.png"], "not in its shard any more", FILES["2.png"], FILES["19.png"]]


def test_only_the_wanted_members_of_a_tar_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "0.tar").write_bytes(tar_bytes())
    taken: list[str] = []
    original = tar_stream._read_member
    monkeypatch.setattr(tar_stream, "_read_member", lambda tar, info: (taken.append(info.name), original(tar, info))[1])
    assert read(tmp_path / "0.tar", PictureRef("3.png"), PictureRef("5.png")) == [FILES["3.png"], FILES["5.png"]]
    assert taken == ["3.png", "5.png"]


def test_a_tar_that_breaks_off_gives_what_comes_before(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(tar_bytes()[:20_000])
    found = read(tmp_path / "0.tar", PictureRef("1.png"), PictureRef("18.png"))
    assert found == [FILES["1.png"], "not in its shard any more"]


def test_a_shard_that_is_gone(tmp_path: Path) -> None:
    for name in ("0.tar", "0.parquet"):
        assert read(tmp_path / name, PictureRef("row 1"), PictureRef("row 2")) == ["shard is gone"] * 2


def test_rows_of_a_table_and_files_it_names(tmp_path: Path) -> None:
    pictures = [FILES[f"{i}.png"] for i in range(20)]
    pq.write_table(pa.table({"image": pictures, "caption": ["a"] * 20}), tmp_path / "t.parquet", row_group_size=6)
    piece = join_uri(str(tmp_path / "t.parquet"), Piece(items=(10, 20)))
    assert read(piece, PictureRef("row 17"), PictureRef("row 11"), PictureRef("row 99")) == [
        pictures[17],
        pictures[11],
        "not in its shard any more",
    ]
    (tmp_path / "a.png").write_bytes(b"a picture")
    listing = [PictureRef("a.png"), PictureRef("b.png"), PictureRef("../a.png"), PictureRef(None)]
    assert read(tmp_path / "list.csv", *listing) == [
        b"a picture",
        "no such file",
        "link leaves its folder",
        "no address known",
    ]


def test_rows_of_a_table_whose_pictures_are_in_a_column_of_another_name(tmp_path: Path) -> None:
    table = pa.table({"image": ["elsewhere.png"] * 3, "bild": [b"a", b"b", b"c"]})
    pq.write_table(table, tmp_path / "t.parquet")
    found = dict(read_pictures(str(tmp_path / "t.parquet"), [PictureRef("row 2"), PictureRef("row 0")], OWN, "bild"))
    assert found == {0: b"c", 1: b"a"}
    assert read_member(str(tmp_path / "t.parquet"), "row 1", OWN, "bild") == b"b"


def test_folders_and_the_addresses_of_published_vectors(tmp_path: Path) -> None:
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "1.png").write_bytes(b"a cat")
    folder = join_uri(str(tmp_path), Piece(folder="cats"))
    assert read(folder, PictureRef("1.png"), PictureRef("2.png")) == [b"a cat", "no such file"]
    vectors = join_uri(str(tmp_path), Piece(embeddings="0"))
    asked = [PictureRef(None, f"file://{tmp_path}/cats/1.png"), PictureRef(None, None)]
    assert read(vectors, *asked) == [b"a cat", "no address known"]
