"""The reader takes what is good from any tar, says why of every pair it cannot use, and where a tar breaks off."""

import gzip
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.tars import END, Member, good_pairs, header, pair, picture, raw, tar_bytes
from memory_builder.errors import SourceError
from memory_builder.readers import tar_stream
from memory_builder.readers.discover import current_etag, find_sources
from memory_builder.readers.link_policy import LinkPolicy
from memory_builder.readers.read import Pair, Reject, Truncated, read_member, read_pairs

OWN = LinkPolicy(follows_named=True)
"""Of what a test names itself."""

if TYPE_CHECKING:
    from helpers.s3 import S3

PNG = picture()
DEEP = b'{"a": ' * 5_000 + b"1" + b"}" * 5_000


class Read:
    """What came out of a shard."""

    def __init__(self, uri: str | Path, **options: Any) -> None:
        self.items = list(read_pairs(str(uri), **options))
        self.pairs = {item.key: item for item in self.items if isinstance(item, Pair)}
        self.reasons = [(item.key, item.reason) for item in self.items if isinstance(item, Reject)]
        self.broken = [item.reason for item in self.items if isinstance(item, Truncated)]


@pytest.fixture
def shard(tmp_path: Path) -> Callable[..., Path]:
    """Writes a tar of these members, or these very bytes."""

    def write(content: bytes | list[Member], name: str = "shard.tar") -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else tar_bytes(content))
        return path

    return write


def link(name: str, kind: bytes) -> Member:
    return header(name, kind=kind, linkname="/etc/passwd"), b""


CAPTION = b"a caption"
# key → (members, why the pair is refused, or None if it is kept)
CASES: dict[str, tuple[list[Member], str | None]] = {
    "good": ([("good.png", PNG), ("good.txt", CAPTION)], None),
    "json caption": ([("json caption.png", PNG), ("json caption.json", b'{"caption": "hi", "n": 1}')], None),
    "upper": ([("upper.JPG", PNG), ("upper.TXT", CAPTION)], None),
    "folder/a": ([("folder/a.webp", PNG), ("folder/a.txt", CAPTION)], None),
    "folder.d/b": ([("folder.d/b.jpeg", PNG), ("folder.d/b.txt", CAPTION)], None),
    "./dot": ([("./dot.png", PNG), ("./dot.txt", CAPTION)], None),
    "naïve 熊猫 🐼": ([("naïve 熊猫 🐼.png", PNG), ("naïve 熊猫 🐼.txt", "🐼".encode())], None),
    "long" * 60: ([("long" * 60 + ".png", PNG), ("long" * 60 + ".txt", CAPTION)], None),
    "bom": ([("bom.png", PNG), ("bom.txt", b"\xef\xbb\xbfcaption")], None),
    "surrogates": ([("surrogates.png", PNG), ("surrogates.json", b'{"caption": "a \\ud83d b", "x": "\\udc00"}')], None),
    "more sides": ([("more sides.cls", b"3"), ("more sides.png", PNG), ("more sides.txt", CAPTION)], None),
    "txt wins": ([("txt wins.png", PNG), ("txt wins.txt", CAPTION), ("txt wins.json", b'{"caption": 7}')], None),
    "no caption": ([("no caption.png", PNG)], "no caption"),
    "no image": ([("no image.txt", CAPTION)], "no image"),
    "dots.in.name": ([("dots.in.name.png", PNG), ("dots.in.name.txt", CAPTION)], "neither image nor caption"),
    "README": ([("README", b"hello")], "neither image nor caption"),
    "odd": ([("odd.psd", PNG), ("odd.txt", CAPTION)], "no image"),
    "tiff": ([("tiff.tiff", PNG), ("tiff.txt", CAPTION)], None),
    "empty image": ([("empty image.png", b""), ("empty image.txt", CAPTION)], "empty image file"),
    "empty caption": ([("empty caption.png", PNG), ("empty caption.txt", b"")], "no caption"),
    "blank caption": ([("blank caption.png", PNG), ("blank caption.txt", b" \n\t\xc2\xa0 ")], "no caption"),
    "latin": ([("latin.png", PNG), ("latin.txt", "café".encode("latin-1"))], "caption is not UTF-8"),
    "bad json": ([("bad json.png", PNG), ("bad json.json", b'{"caption": ')], "json cannot be parsed"),
    "binary json": ([("binary json.png", PNG), ("binary json.json", b"\xff\x00\x01")], "json cannot be parsed"),
    "huge int": ([("huge int.png", PNG), ("huge int.json", b"[" + b"9" * 5000 + b"]")], "json cannot be parsed"),
    "list json": ([("list json.png", PNG), ("list json.json", b'["caption"]')], "json is not an object"),
    "null json": ([("null json.png", PNG), ("null json.json", b"null")], "json is not an object"),
    "deep json": ([("deep json.png", PNG), ("deep json.json", DEEP)], "json nested too deeply"),
    "odd caption": (
        [("odd caption.png", PNG), ("odd caption.json", b'{"caption": [7]}')],
        "field caption is not a text",
    ),
    "several captions": (
        [("several captions.png", PNG), ("several captions.json", b'{"caption": [null, " ", "x", "y"]}')],
        None,
    ),
    "null caption": ([("null caption.png", PNG), ("null caption.json", b'{"caption": null}')], "no caption"),
    "../up": ([("../up.png", PNG), ("../up.txt", CAPTION)], "unsafe member name"),
    "a/../../up": ([("a/../../up.png", PNG), ("a/../../up.txt", CAPTION)], "unsafe member name"),
    "/etc/abs": ([("/etc/abs.png", PNG), ("/etc/abs.txt", CAPTION)], "unsafe member name"),
    "symlink": ([link("symlink.png", tarfile.SYMTYPE), ("symlink.txt", CAPTION)], "member is a link or device"),
    "hardlink": ([link("hardlink.png", tarfile.LNKTYPE), ("hardlink.txt", CAPTION)], "member is a link or device"),
    "device": ([link("device.png", tarfile.CHRTYPE), ("device.txt", CAPTION)], "member is a link or device"),
    "fifo": ([("fifo.png", PNG), link("fifo.txt", tarfile.FIFOTYPE)], "member is a link or device"),
}


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["gnu", "pax"])
def test_every_pair_is_kept_or_refused_with_its_reason(shard: Callable[..., Path], kind: int) -> None:
    read = Read(shard(tar_bytes([member for members, _ in CASES.values() for member in members], kind=kind)))
    expected = {key.split(".in.")[0].removeprefix("./"): reason for key, (_, reason) in CASES.items()}
    assert dict(read.reasons) == {key: reason for key, reason in expected.items() if reason}
    assert set(read.pairs) == {key for key, reason in expected.items() if not reason}
    assert len(read.items) == len(CASES)  # kept + refused = pairs
    assert read.broken == []


def test_a_kept_pair_holds_what_lies_in_the_shard(shard: Callable[..., Path]) -> None:
    read = Read(shard([member for members, _ in CASES.values() for member in members]))
    assert read.pairs["good"] == Pair(key="good", image=PNG, caption="a caption", member="good.png", fields={})
    assert read.pairs["json caption"].fields == {"caption": "hi", "n": 1}
    assert read.pairs["json caption"].caption == "hi"
    assert read.pairs["upper"].member == "upper.JPG"
    assert read.pairs["bom"].caption == "caption"
    assert read.pairs["surrogates"].caption == "a ? b"
    assert read.pairs["txt wins"].caption == "a caption"


@pytest.mark.parametrize(
    ("require", "kept"),
    [("both", {"whole"}), ("image", {"whole", "image only"}), ("text", {"whole", "text only"})],
)
def test_a_pair_needs_the_required_sides_only(shard: Callable[..., Path], require: Any, kept: set[str]) -> None:
    members = [*pair("whole"), ("image only.png", PNG), ("text only.txt", CAPTION), ("neither.json", b"{}")]
    read = Read(shard(members), require=require)
    assert set(read.pairs) == kept
    assert len(read.reasons) == 4 - len(kept)
    assert all((found.image is None) == (key == "text only") for key, found in read.pairs.items())
    assert all((found.caption is None) == (key == "image only") for key, found in read.pairs.items())


def test_a_key_is_taken_once(shard: Callable[..., Path]) -> None:
    again = [("a.png", picture(1)), ("a.txt", b"another")]
    read = Read(shard([*pair("a"), *again, *pair("b"), *again, *pair("c")]))
    assert list(read.pairs) == ["a", "b", "c"]
    assert read.pairs["a"].caption == "a picture called a"
    assert read.reasons == [("a", "duplicate key")] * 2


def test_names_that_are_no_unicode_are_kept_printable_and_found_again(shard: Callable[..., Path]) -> None:
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    odd = [(f"{name}.png", PNG), (f"{name}.txt", CAPTION)]
    path = shard([*odd, *pair("b"), *odd])
    read = Read(path)
    assert list(read.pairs) == ["caf?", "b"]
    assert read.reasons == [("caf?", "duplicate key")]
    for _, reason in read.reasons:
        reason.encode()
    assert read_member(str(path), read.pairs["caf?"].member or "", OWN) == picture()


def test_folders_and_mac_files_are_no_pairs(shard: Callable[..., Path]) -> None:
    folder: Member = (header("a", kind=tarfile.DIRTYPE), b"")
    read = Read(
        shard([folder, ("a/._x.png", b"mac"), ("a/x.png", PNG), ("a/._x.txt", b"mac"), folder, ("a/x.txt", b"x")])
    )
    assert list(read.pairs) == ["a/x"]
    assert read.reasons == []


def test_img2dataset_shards_are_read_whole(shard: Callable[..., Path]) -> None:
    members: list[Member] = []
    for n in range(3):
        key = f"00001000{n}"
        about = {"url": f"http://x/{n}", "key": key, "caption": f"caption {n}", "status": "success", "sha256": "0" * 64}
        members += [
            (f"{key}.jpg", picture(n, kind="JPEG")),
            (f"{key}.txt", about["caption"].encode()),
            (f"{key}.json", json.dumps(about).encode()),
        ]
    read = Read(shard(members))
    assert [found.caption for found in read.pairs.values()] == ["caption 0", "caption 1", "caption 2"]
    assert read.pairs["000010002"].fields["url"] == "http://x/2"
    assert read.reasons == read.broken == []


def test_another_json_field_may_hold_the_caption(shard: Callable[..., Path]) -> None:
    path = shard([("a.png", PNG), ("a.json", b'{"caption": "no", "alt": "yes"}'), ("b.png", PNG), ("b.json", b"{}")])
    read = Read(path, caption_key="alt")
    assert read.pairs["a"].caption == "yes"
    assert read.reasons == [("b", "no caption")]


GOOD = good_pairs(["a", "b", "c"])
WHOLE = tar_bytes(GOOD).rstrip(b"\0")
WHOLE += b"\0" * (-len(WHOLE) % 512)  # three pairs without the end-of-archive mark
BASE256 = {n: bytes([0x80]) + n.to_bytes(11, "big") for n in (1 << 40, 1 << 62, 1 << 80)}


def with_size(name: str, size: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header whose size field holds these bytes, its checksum right."""
    block = bytearray(raw(header(name, kind=kind)))
    block[124:136] = size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(records: bytes) -> bytes:
    return raw(header("././@PaxHeader", kind=tarfile.XHDTYPE), records)


BREAKS: dict[str, tuple[bytes, set[str], str]] = {
    # content, keys kept, what the break must say
    "empty file": (b"", set(), "at byte 0: empty file"),
    "not a tar": (b"GIF89a" * 1000, set(), "at byte 0"),
    "text": (b"hello\n", set(), "at byte 0"),
    "html error page": (b"<!DOCTYPE html><h1>404</h1>" * 100, set(), "at byte 0"),
    "end mark missing": (WHOLE, {"a", "b"}, f"at byte {len(WHOLE)}: the end-of-archive mark is missing"),
    "cut in a header": (WHOLE + raw(header("d.png"), PNG)[:100], {"a", "b"}, f"at byte {len(WHOLE)}: truncated header"),
    "cut in the data": (
        WHOLE + raw(header("d.png"), PNG)[:700],
        {"a", "b", "c"},
        f"at byte {len(WHOLE)}: unexpected end of data",
    ),
    "cut in the padding": (WHOLE + raw(header("d.txt"), b"x")[:514], {"a", "b", "c"}, "cut short"),
    "damaged header": (
        WHOLE + b"\xa5" * 512 + tar_bytes(pair("d")),
        {"a", "b"},
        f"at byte {len(WHOLE)}: invalid header",
    ),
    "zeros and more": (WHOLE + END + tar_bytes(pair("d")), {"a", "b", "c"}, "data behind the end-of-archive mark"),
    "garbage after the end": (WHOLE + END + b"garbage", {"a", "b", "c"}, "data behind the end-of-archive mark"),
    "huge member": (WHOLE + with_size("d.png", BASE256[1 << 40]) + PNG, {"a", "b", "c"}, "cut short"),
    "absurd member": (WHOLE + with_size("d.png", BASE256[1 << 62]) + PNG, {"a", "b"}, "claims"),
    "unthinkable member": (WHOLE + with_size("d.png", BASE256[1 << 80]) + PNG, {"a", "b"}, "claims"),
    "backward member": (WHOLE + with_size("d.png", b"\xff" * 10 + b"\xfc\x00") + END, {"a", "b"}, "claims -1024"),
    "backward first member": (with_size("d.png", b"\xff" * 10 + b"\xfc\x00") + END, set(), "claims -1024"),
    "backward by pax": (WHOLE + pax(b"14 size=-2048\n") + raw(header("d.png"), PNG), {"a", "b"}, "at byte"),
    "huge name": (WHOLE + with_size("x", BASE256[1 << 40], tarfile.GNUTYPE_LONGNAME) + END, {"a", "b"}, "at byte"),
    "absurd name": (WHOLE + with_size("x", BASE256[1 << 62], tarfile.GNUTYPE_LONGNAME) + END, {"a", "b"}, "at byte"),
    "absurd pax": (WHOLE + with_size("x", BASE256[1 << 80], tarfile.XHDTYPE) + END, {"a", "b"}, "at byte"),
    "pax is garbage": (WHOLE + pax(b"\xff\x00 no records") + END, {"a", "b"}, "at byte"),
    "name of names": (
        WHOLE + raw(header("././@LongLink", kind=tarfile.GNUTYPE_LONGNAME), b"x\0") * 3000 + END,
        {"a", "b"},
        "at byte",
    ),
}


@pytest.mark.parametrize("kind", BREAKS)
def test_a_tar_that_breaks_off_keeps_what_came_before(shard: Callable[..., Path], kind: str) -> None:
    content, kept, says = BREAKS[kind]
    read = Read(shard(content))
    assert set(read.pairs) == kept
    assert len(read.broken) == 1
    assert isinstance(read.items[-1], Truncated)
    assert says in read.broken[0]
    assert read.broken[0].startswith(("breaks off at byte ", "not a tar (breaks off at byte 0: "))


def test_a_sparse_member_that_ends_in_its_map_breaks_the_tar_off(shard: Callable[..., Path]) -> None:
    block = bytearray(with_size("d.png", b"00000001000\0", tarfile.GNUTYPE_SPARSE))
    block[482] = 1  # the map goes on in the next block, which is not there
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    read = Read(shard(WHOLE + bytes(block)))
    assert set(read.pairs) == {"a", "b"}
    assert len(read.broken) == 1


def test_an_empty_tar_is_whole(shard: Callable[..., Path]) -> None:
    assert Read(shard([])).items == []
    assert Read(shard(END)).items == []


def test_one_block_of_zeros_ends_a_tar(shard: Callable[..., Path]) -> None:
    read = Read(shard(WHOLE + b"\0" * 512))
    assert set(read.pairs) == {"a", "b", "c"}
    assert read.broken == []


def test_a_member_larger_than_the_limit_is_passed_over(
    shard: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memory_builder.readers.tar_stream.MAX_MEMBER_BYTES", 1 << 20)
    large = [("large.png", b"x" * ((1 << 20) + 1)), ("large.txt", CAPTION)]
    read = Read(shard([*pair("a"), *large, *pair("b")]))
    assert set(read.pairs) == {"a", "b"}
    assert read.reasons == [("large", "member larger than 1 MiB")]
    assert read.broken == []


@pytest.mark.parametrize("name", ["shard.tar.gz", "shard.tgz"])
def test_gzipped_tars_are_read_and_break_off_like_others(shard: Callable[..., Path], name: str) -> None:
    packed = gzip.compress(tar_bytes(good_pairs([f"{n:03d}" for n in range(50)])))
    whole = Read(shard(packed, name))
    assert (len(whole.pairs), whole.broken) == (50, [])
    for cut in (0, 5, 20, len(packed) // 2, len(packed) - 4):
        read = Read(shard(packed[:cut], name))
        assert list(read.pairs) == list(whole.pairs)[: len(read.pairs)]
        assert len(read.broken) == 1
    assert len(Read(shard(packed[: len(packed) // 2], name)).pairs) > 10
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 0xFF
    assert len(Read(shard(bytes(flipped), name)).broken) == 1
    assert Read(shard(b"plain, not gzip", name)).broken


SMALL = tar_bytes(
    [member for n in range(4) for member in ((f"{n}.png", b"not looked into"), (f"{n}.txt", b"caption"))],
    kind=tarfile.PAX_FORMAT,
)
ALL_SMALL = ["0", "1", "2", "3"]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch") / "shard.tar"


@settings(max_examples=300)
@given(cut=st.integers(0, len(SMALL)))
def test_a_tar_cut_anywhere_keeps_a_prefix(scratch: Path, cut: int) -> None:
    scratch.write_bytes(SMALL[:cut])
    read = Read(scratch)
    assert list(read.pairs) == ALL_SMALL[: len(read.pairs)]
    assert read.reasons == []
    assert len(read.broken) == (len(read.pairs) < 4)
    complete = cut // (len(SMALL.rstrip(b"\0")) // 512 * 512 // 4 + 1)
    assert len(read.pairs) >= min(complete - 1, 4)


@settings(max_examples=300)
@given(at=st.integers(0, len(SMALL) - 1), value=st.integers(0, 255))
def test_a_tar_with_any_byte_changed_is_still_read(scratch: Path, at: int, value: int) -> None:
    content = bytearray(SMALL)
    content[at] = value
    scratch.write_bytes(content)
    read = Read(scratch)
    assert len(read.broken) <= 1
    assert len(read.pairs) + len(read.reasons) <= 8
    before = max(
        0, (at // 512 - 1) // 4
    )  # pairs of four blocks each that lie wholly before the change, one left for safety
    assert list(read.pairs)[:before] == ALL_SMALL[:before]


@settings(max_examples=100)
@given(content=st.binary(max_size=2048))
def test_any_bytes_at_all_are_read_without_an_exception(scratch: Path, content: bytes) -> None:
    scratch.write_bytes(content)
    Read(scratch)
    scratch.write_bytes(WHOLE[:4096] + content)
    assert Read(scratch).items


class FlakyFile(MemoryFile):
    """A connection that drops in the middle."""

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() > 2000:
            raise ConnectionResetError("connection reset by peer")
        return super().read(-1 if size is None else size)


class FlakyFileSystem(MemoryFileSystem):
    protocol = "flaky"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("flaky://"))

    def _open(self, path: str, *_: Any, **__: Any) -> FlakyFile:
        return FlakyFile(self, path, tar_bytes(GOOD))


def test_a_dropped_connection_is_no_broken_tar() -> None:
    fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)
    with pytest.raises(SourceError, match="connection reset by peer"):
        list(read_pairs("flaky://x.tar"))


def test_a_shard_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    for uri in (tmp_path / "gone.tar", tmp_path):
        with pytest.raises(SourceError, match=str(uri)):
            list(read_pairs(str(uri)))
    with pytest.raises(SourceError, match="missing since it was planned"):
        current_etag(str(tmp_path / "gone.tar"))


def test_a_member_is_read_again(shard: Callable[..., Path], tmp_path: Path) -> None:
    path = shard([*pair("a"), *pair("b", seed=7)])
    assert read_member(str(path), "b.png", OWN) == picture(7)
    for uri, member in ((path, "c.png"), (tmp_path / "gone.tar", "a.png")):
        with pytest.raises(SourceError, match="is not available"):
            read_member(str(uri), member, OWN)


def names(patterns: list[str]) -> list[str]:
    return [source.uri.rsplit("/", 1)[1] for source in find_sources(patterns)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.tar", "a.tar", "c.tar.gz", "d.tgz", "notes.txt", "a.tar.idx"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "deeper.tar").mkdir()
    (tmp_path / "deeper.tar" / "e.tar").write_bytes(b"x")
    return tmp_path


def test_sources_are_found_by_path_folder_glob_and_range_each_once_and_sorted(folder: Path) -> None:
    assert names([str(folder)]) == ["a.tar", "b.tar", "c.tar.gz", "d.tgz", "e.tar"]
    assert names([f"{folder}/b.tar"]) == ["b.tar"]
    assert names([f"{folder}/*.tar"]) == ["a.tar", "b.tar"]
    assert names([f"{folder}/**/*.tar"]) == ["a.tar", "b.tar", "e.tar"]
    several = [f"{folder}/{{a,b}}.tar", f"{folder}/a.tar", str(folder)]
    assert names(several) == ["a.tar", "b.tar", "c.tar.gz", "d.tgz", "e.tar"]
    assert names([f"file://{folder}/a.tar"]) == ["a.tar"]


def test_a_brace_range_may_be_wider_than_a_thousand(tmp_path: Path) -> None:
    for n in range(1200):
        (tmp_path / f"{n:05d}.tar").touch()
    found = names([f"{tmp_path}/{{00000..01199}}.tar"])
    assert found == [f"{n:05d}.tar" for n in range(1200)]


@pytest.mark.parametrize(
    "pattern", ["nothing.tar", "*.zip", "{x,y}.tar", "deeper.tar/none", "nowhere/{0..3}.tar", "deeper.tar/*/*.tar"]
)
def test_what_matches_nothing_is_an_error_that_names_it(folder: Path, pattern: str) -> None:
    with pytest.raises(SourceError) as error:
        find_sources([f"{folder}/a.tar", f"{folder}/{pattern}"])
    assert pattern in str(error.value)


@pytest.mark.parametrize("pattern", ["nonsense://a.tar", "http+bad://{a,b}/x.tar"])
def test_an_unknown_kind_of_address_is_an_error_that_names_it(pattern: str) -> None:
    with pytest.raises(SourceError) as error:
        find_sources([pattern])
    assert pattern in str(error.value)


def test_a_source_carries_size_and_an_etag_that_changes_with_the_content(folder: Path) -> None:
    (before,) = find_sources([f"{folder}/a.tar"])
    assert before.bytes == 1
    assert before.etag == current_etag(before.uri)
    assert find_sources([str(folder)])[0] == before
    os.utime(folder / "a.tar", (1, 1))
    assert current_etag(before.uri) != before.etag


def test_a_linked_shard_has_the_etag_of_its_target(folder: Path) -> None:
    (folder / "link.tar").symlink_to(folder / "notes.txt")
    by_folder = {source.uri: source.etag for source in find_sources([str(folder)])}
    assert by_folder[f"{folder}/link.tar"] == current_etag(f"{folder}/link.tar") == current_etag(f"{folder}/notes.txt")


def test_a_dangling_link_is_an_error(folder: Path) -> None:
    (folder / "dangling.tar").symlink_to(folder / "gone")
    with pytest.raises(SourceError, match=r"dangling\.tar"):
        find_sources([str(folder)])


def test_sources_on_an_object_store(s3: "S3") -> None:
    store = s3.store()
    for n in range(3):
        store.put(f"in/{n}.tar", tar_bytes(pair(str(n))))
    store.put("in/notes.txt", b"x")
    by_folder = find_sources([f"{s3.url}/in"])
    assert [source.uri for source in by_folder] == [f"{s3.url}/in/{n}.tar" for n in range(3)]
    assert by_folder == find_sources([f"{s3.url}/in/*.tar"]) == find_sources([f"{s3.url}/in/{{0..2}}.tar"])
    assert all(current_etag(source.uri) == source.etag for source in by_folder)
    assert list(Read(by_folder[1].uri).pairs) == ["1"]
    store.put("in/1.tar", tar_bytes(pair("other")))
    assert current_etag(by_folder[1].uri) != by_folder[1].etag
    with pytest.raises(SourceError, match="nothing to read"):
        find_sources([f"{s3.url}/out"])
    with pytest.raises(SourceError, match="no-such-bucket"):
        find_sources(["s3://no-such-bucket/*.tar"])
    with pytest.raises(SourceError, match="missing since it was planned"):
        list(read_pairs(f"{s3.url}/in/9.tar"))


def test_reading_streams(monkeypatch: pytest.MonkeyPatch, shard: Callable[..., Path]) -> None:
    path = shard(good_pairs([f"{n:03d}" for n in range(100)]))
    read: list[int] = []
    whole = io.BytesIO(path.read_bytes())

    class Watched(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            data = super().read(size)
            read.append(len(data))
            return data

    monkeypatch.setattr("memory_builder.readers.webdataset.open_stream", lambda _: Watched(whole.getvalue()))
    first = next(iter(read_pairs(str(path))))
    assert isinstance(first, Pair)
    assert sum(read) < len(whole.getvalue()) / 10


@pytest.mark.parametrize("only", [None, frozenset(f"{n:03d}" for n in range(0, 400, 2))], ids=["all", "every second"])
def test_a_zipped_tar_is_unzipped_once(monkeypatch: pytest.MonkeyPatch, only: frozenset[str] | None) -> None:
    packed = gzip.compress(tar_bytes(good_pairs([f"{n:03d}" for n in range(400)])))
    rewinds: list[int] = []

    class Watched(io.BytesIO):
        def seek(self, offset: int, whence: int = 0) -> int:
            rewinds.append(offset)
            return super().seek(offset, whence)

    monkeypatch.setattr(
        "memory_builder.readers.webdataset.open_stream", lambda _: gzip.GzipFile(fileobj=Watched(packed))
    )
    assert len(list(read_pairs("shard.tar.gz", only=only))) == len(only or range(400))
    assert rewinds == []


def _odd_tar(kind: int) -> bytes:
    """Plain members between those that only tarfile knows: long names, folders, links, names that are no ASCII."""
    members: list[Member] = [
        (header("folder", kind=tarfile.DIRTYPE), b""),
        (header("link", 0, tarfile.SYMTYPE, "x"), b""),
    ]
    for i in range(6):
        members.append((f"folder/{i}.txt", b"t" * (700 * i)))
        members.append((f"{'deep/' * (25 * (i % 2))}é{i}.png", bytes([i]) * 511))
    members.append((f"{'l' * 90}/{'n' * 120}.txt", b"long"))
    return tar_bytes(members, kind=kind)


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@given(st.data())
@settings(max_examples=150)
def test_passing_over_what_is_not_wanted_changes_nothing_else(kind: int, data: st.DataObject) -> None:
    content = bytearray(_odd_tar(kind))
    for _ in range(data.draw(st.integers(0, 2))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))]
    suffix = data.draw(st.sampled_from([".txt", ".png", "3.png", "nothing"]))

    def read() -> list[tar_stream.Member | tar_stream.Cut]:
        return list(tar_stream.read_members(io.BytesIO(content), lambda name: name.endswith(suffix)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tar_stream, "_skip_member", lambda *_: False)
        by_tarfile = read()
    assert read() == by_tarfile
