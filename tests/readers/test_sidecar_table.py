"""What a table beside a shard says is joined to its pairs however keys are written; what does not join is told."""

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.tars import Member, good_pairs, pair, picture, tar_bytes
from memory_builder.readers.read import MembersApartError, Pair, Reject, read_pairs
from memory_builder.readers.sidecar_table import ABSENT, NO_KEY, UNKNOWN
from memory_builder.readers.webdataset import GATHERED


def joined(tmp_path: Path, keys: list[str], table_keys: Any, **columns: Any) -> tuple[dict[str, Any], Counter[str]]:
    """Key → the url that was joined, and the notes."""
    (tmp_path / "0.tar").write_bytes(tar_bytes(good_pairs(keys)))
    urls = [f"http://x/{i}" for i in range(len(table_keys))]
    pq.write_table(pa.table({"key": table_keys, "url": urls} | columns), tmp_path / "0.parquet")
    notes: Counter[str] = Counter()
    items = list(read_pairs(str(tmp_path / "0.tar"), notes=notes))
    return {item.key: item.fields.get("url") for item in items if isinstance(item, Pair)}, +notes


URLS = ["http://x/0", "http://x/1"]
SPELLINGS: dict[str, tuple[list[str], Any, list[str]]] = {
    "as they are": (["000", "001"], ["000", "001"], ["000", "001"]),
    "tar -C folder .": (["./000", "./001"], ["000", "001"], ["000", "001"]),
    "integers": (["000", "001"], [0, 1], ["000", "001"]),
    "floats, as pandas makes them of integers with gaps": (["000", "001"], [0.0, 1.0], ["000", "001"]),
    "no zeros in the tar": (["0", "1"], ["000", "001"], ["0", "1"]),
    "in a folder of the tar": (["00000/000", "00000/001"], ["000", "001"], ["00000/000", "00000/001"]),
    "in a folder of the tar, integers": (["./d/000", "./d/001"], [0, 1], ["d/000", "d/001"]),
    "bytes": (["a", "b"], [b"a", b"b"], ["a", "b"]),
    "with ./ in the table": (["a", "b"], ["./a", "./b"], ["a", "b"]),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_keys_are_joined_however_they_are_written(tmp_path: Path, name: str) -> None:
    keys, table_keys, kept = SPELLINGS[name]
    assert joined(tmp_path, keys, table_keys) == (dict(zip(kept, URLS, strict=True)), {})


def test_a_number_that_two_keys_have_joins_neither(tmp_path: Path) -> None:
    assert joined(tmp_path, ["001", "1"], ["1", "01"]) == ({"001": None, "1": "http://x/0"}, {UNKNOWN: 1})


def test_what_does_not_join_is_counted(tmp_path: Path) -> None:
    urls, notes = joined(tmp_path, ["a", "b"], ["x", "y", "z"], status=["success", "failed_to_download", "success"])
    assert urls == {"a": None, "b": None}
    assert notes == {UNKNOWN: 2, ABSENT: 2}


def test_a_table_without_keys_is_not_joined_and_counted(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(tar_bytes(good_pairs(["a"])))
    pq.write_table(pa.table({"url": ["http://x"]}), tmp_path / "0.parquet")
    notes: Counter[str] = Counter()
    assert len(list(read_pairs(str(tmp_path / "0.tar"), notes=notes))) == 1
    assert notes == {NO_KEY: 1}


COLORS = ["red", "green", "blue"]
IMAGES: list[Member] = [(f"{color}.jpg", picture(i)) for i, color in enumerate(COLORS)]
TEXTS: list[Member] = [(f"{color}.txt", f"a {color} square".encode()) for color in COLORS]
JSONS: list[Member] = [(f"{color}.json", b'{"n": 1}') for color in COLORS]
APART = {
    "pictures, then captions": [*IMAGES, *TEXTS],
    "captions, then pictures": [*TEXTS, *IMAGES],
    "json of all at the end": [m for pair in zip(IMAGES, TEXTS, strict=True) for m in pair] + JSONS,
    "one of them": [IMAGES[0], IMAGES[1], TEXTS[1], IMAGES[2], TEXTS[2], TEXTS[0]],
}


@pytest.mark.parametrize("name", APART)
@pytest.mark.parametrize("require", ["both", "image", "text"])
def test_files_of_a_pair_that_are_apart_are_put_together_or_refused(tmp_path: Path, name: str, require: Any) -> None:
    """They were rejected as duplicates, and captions were lost."""
    path = tmp_path / "u.tar"
    path.write_bytes(tar_bytes(APART[name]))
    with pytest.raises(MembersApartError, match=r"are apart.*tar --sort=name"):
        list(read_pairs(str(path), require=require))
    notes: Counter[str] = Counter()
    items = list(read_pairs(str(path), require=require, gather=True, notes=notes))
    pairs = {item.key: (item.caption, item.image) for item in items if isinstance(item, Pair)}
    assert pairs == {color: (f"a {color} square", picture(i)) for i, color in enumerate(COLORS)}
    assert len(items) == 3
    assert notes[GATHERED] == (1 if name == "one of them" else 3)


def test_a_key_that_comes_again_with_the_same_files_is_a_duplicate(tmp_path: Path) -> None:
    path = tmp_path / "u.tar"
    path.write_bytes(tar_bytes([*pair("a"), *pair("b"), *pair("a", 1)]))
    for gather in (False, True):
        items = list(read_pairs(str(path), gather=gather))
        assert sorted((item.key, getattr(item, "reason", "")) for item in items) == [
            ("a", ""),
            ("a", "duplicate key"),
            ("b", ""),
        ]


def test_a_file_that_comes_twice_and_names_that_differ_by_case_lose_no_pair(tmp_path: Path) -> None:
    path = tmp_path / "u.tar"
    one, two = picture(1), picture(2)
    path.write_bytes(tar_bytes([("a.jpg", one), ("a.JPG", two), ("a.txt", b"both"), ("b.jpg", one), ("b.txt", b"x")]))
    pairs = {item.key: (item.caption, item.image) for item in read_pairs(str(path)) if isinstance(item, Pair)}
    assert pairs == {"a.jpg": ("both", one), "a.JPG": ("both", two), "b": ("x", one)}
    path.write_bytes(tar_bytes([("a.jpg", one), ("a.jpg", two), ("a.txt", b"once"), ("b.jpg", one), ("b.txt", b"x")]))
    items = list(read_pairs(str(path), gather=True))
    assert [(item.key, getattr(item, "caption", None)) for item in items] == [("a", "once"), ("a", None), ("b", "x")]


def test_files_that_no_pair_lacks_may_lie_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "u.tar"
    junk: list[Member] = [(".DS_Store", b"x"), ("d/.hidden", b"x"), ("a.cls", b"3")]
    path.write_bytes(tar_bytes([junk[0], *pair("a"), junk[1], *pair("b"), *junk]))
    kept = [item.key for item in read_pairs(str(path)) if isinstance(item, Pair)]
    assert kept == ["a", "b"]


def test_a_gathered_tar_that_breaks_off_keeps_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "u.tar"
    whole = tar_bytes([*IMAGES, *TEXTS])
    path.write_bytes(whole[: len(whole) - 1024 - 512 - 10_240 % 512 - 512])
    items = list(read_pairs(str(path), gather=True))
    kept = {item.key for item in items if isinstance(item, Pair)}
    assert kept | {item.key for item in items if isinstance(item, Reject)} == set(COLORS)
