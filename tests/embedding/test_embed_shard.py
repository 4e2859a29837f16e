"""One shard in, its files and its commit record out: every pair is a row or a reject, and the same input gives the
same bytes."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.tars import Member, good_pairs, pair, picture, raw, tar_bytes
from helpers.tars import header as tar_header
from memory_builder.base.types import Pixels, Vectors
from memory_builder.catalog.commits import Commit
from memory_builder.catalog.manifest import Manifest
from memory_builder.embedding.config import EmbedConfig, describe
from memory_builder.embedding.embed_shard import EmbedTask, embed_shard
from memory_builder.errors import EncoderError, SourceError, UsageError
from memory_builder.model.encoder import Encoder
from memory_builder.readers.discover import find_sources
from memory_builder.readers.shard import Shard
from memory_builder.storage.records import content_hash
from memory_builder.storage.store import Store, sha256

FILES = [
    "img_emb/img_emb_00003.npy",
    "metadata/metadata_00003.parquet",
    "rejects/rejects_00003.parquet",
    "rows/rows_00003.arrow",
    "text_emb/text_emb_00003.npy",
]


class Embedded:
    """A memory into which one shard was embedded as number 3."""

    def __init__(self, store: Store, commit: Commit) -> None:
        self.store, self.commit = store, commit
        self.images, self.texts = (np.load(io.BytesIO(store.read(FILES[i]))) for i in (0, 4))
        self.metadata = pq.read_table(io.BytesIO(store.read(FILES[1])))
        self.rejects = {row["key"]: row["reason"] for row in self.read_rejects()}

    def read_rejects(self) -> list[dict[str, str]]:
        rows: list[dict[str, str]] = pq.read_table(io.BytesIO(self.store.read(FILES[2]))).to_pylist()
        return rows


@pytest.fixture
def embed_tar(tmp_path: Path, encoder: Encoder) -> Callable[..., Embedded]:
    """Embeds a tar of these members, or these bytes, with this configuration."""

    def embed(
        content: bytes | list[Member],
        *,
        store: Store | None = None,
        encoder: Any = encoder,
        decode_threads: int = 2,
        memory: str = "memory",
        **config: Any,
    ) -> Embedded:
        store = store or Store(tmp_path / memory)
        commit = embed_shard(
            planned(tmp_path / "in.tar", content),
            encoder=encoder,
            store=store,
            config=EmbedConfig(**config),
            config_hash="0" * 16,
            decode_threads=decode_threads,
        )
        return Embedded(store, commit)

    return embed


def planned(path: Path, content: bytes | list[Member]) -> Shard:
    path.write_bytes(content if isinstance(content, bytes) else tar_bytes(content))
    (source,) = find_sources([str(path)])
    return Shard(ordinal=3, uri=source.uri, bytes=source.bytes, etag=source.etag)


def damaged_pairs() -> tuple[list[Member], dict[str, str]]:
    """80 good pairs and ten bad ones among them, with what is wrong."""
    jpeg = picture(kind="JPEG")
    bad = {
        "bad-empty": (b"", b"x", "empty image file"),
        "bad-text": (b"this is a text", b"x", "not an image"),
        "bad-html": (b"<html>404</html>", b"x", "not an image"),
        "bad-cut": (jpeg[: len(jpeg) // 2], b"x", "image is damaged"),
        "bad-nul": (b"\0" * 500, b"x", "not an image"),
        "bad-caption": (jpeg, b"", "no caption"),
        "bad-utf8": (jpeg, b"\xff\xfe", "caption is not UTF-8"),
        "bad-line": (picture(size=(200, 1)), b"x", "image more than 100 times as long as wide"),
    }
    members = good_pairs([f"good-{n:03d}" for n in range(80)])
    for i, (key, (image, caption, _)) in enumerate(bad.items()):
        members[20 * i : 20 * i] = [(f"{key}.jpg", image), (f"{key}.txt", caption)]
    members += [("bad-alone.jpg", jpeg), ("bad-widow.txt", b"x")]
    reasons = {key: reason for key, (_, _, reason) in bad.items()}
    return members, reasons | {"bad-alone": "no caption", "bad-widow": "no image"}


def test_every_pair_is_a_row_or_a_reject(embed_tar: Callable[..., Embedded]) -> None:
    members, reasons = damaged_pairs()
    done = embed_tar(members)
    assert done.rejects == reasons
    assert done.commit.n_read == 90
    assert done.commit.n_written == done.commit.n_images == done.commit.n_texts == 80
    assert sum(done.commit.reasons.values()) == done.commit.n_read - done.commit.n_written
    assert done.metadata["key"].to_pylist() == [f"good-{n:03d}" for n in range(80)]
    assert done.commit.partial is None


def test_the_commit_names_every_file_with_its_checksum(embed_tar: Callable[..., Embedded]) -> None:
    done = embed_tar(good_pairs(["a", "b"]))
    assert sorted(done.commit.checksums) == FILES
    for path, digest in done.commit.checksums.items():
        assert sha256(done.store.read(path)) == digest
    assert Manifest.read(done.store).commits == {3: done.commit}
    seconds = done.commit.seconds
    assert 0 < seconds["forward"] + seconds["write"] < seconds["total"]
    assert seconds["decode"] > 0


def test_row_i_is_vector_i_of_pair_i(embed_tar: Callable[..., Embedded], encoder: Encoder) -> None:
    keys = ["a", "b", "c", "d", "e"]
    done = embed_tar(good_pairs(keys), batch_size=2)
    assert done.images.dtype == done.texts.dtype == np.float16
    pixels = np.stack([encoder.preprocess(_rgb(picture(seed))) for seed in range(5)])
    np.testing.assert_allclose(done.images, encoder.encode_images(pixels), atol=2e-3)
    np.testing.assert_allclose(done.texts, encoder.encode_texts([f"a picture called {k}" for k in keys]), atol=2e-3)
    row = done.metadata.to_pylist()[1]
    assert row == {
        "key": "b",
        "caption": "a picture called b",
        "url": None,
        "width": 24,
        "height": 20,
        "sha256": sha256(picture(1)),
        "member": "b.png",
        "has_image": True,
        "has_text": True,
        "extra": "{}",
    }
    lookup = pa.ipc.open_file(io.BytesIO(done.store.read(FILES[3]))).read_all()
    assert lookup.equals(done.metadata.select(["key", "caption", "url"]))


def _rgb(data: bytes) -> Any:
    from memory_builder.model.images import decode_image

    return decode_image(data)


def test_the_same_input_gives_the_same_bytes_whatever_the_threads(embed_tar: Callable[..., Embedded]) -> None:
    members = [*good_pairs([f"{n:02d}" for n in range(20)]), ("bad.jpg", b"x"), ("bad.txt", b"x")]
    checksums = [
        embed_tar(members, decode_threads=threads, memory=str(threads), batch_size=8).commit.checksums
        for threads in (1, 4)
    ]
    assert checksums[0] == checksums[1]


@pytest.mark.parametrize(
    ("require", "rows"),
    [("both", ["whole"]), ("image", ["whole", "image only"]), ("text", ["whole", "text only"])],
)
def test_a_side_that_is_not_there_is_a_row_of_zeros(
    embed_tar: Callable[..., Embedded], require: str, rows: list[str]
) -> None:
    members = [*pair("whole"), ("image only.png", picture(1)), ("text only.txt", b"only text")]
    done = embed_tar(members, require=require)
    assert done.metadata["key"].to_pylist() == rows
    has_image, has_text = done.metadata["has_image"].to_pylist(), done.metadata["has_text"].to_pylist()
    assert has_image == [key != "text only" for key in rows]
    assert has_text == [key != "image only" for key in rows]
    assert done.images.any(axis=1).tolist() == has_image
    assert done.texts.any(axis=1).tolist() == has_text
    assert (done.commit.n_images, done.commit.n_texts) == (sum(has_image), sum(has_text))
    assert done.commit.n_read == 3


def test_chosen_json_fields_become_columns_and_the_rest_is_kept_as_it_was(embed_tar: Callable[..., Embedded]) -> None:
    odd = {
        "good": {"n": 3, "f": 0.5, "s": "x", "b": True, "url": "http://x", "other": [1, {"a": None}]},
        "wrong": {"n": "3", "f": "y", "s": 4, "b": 1, "url": 5},
        "large": {"n": 1 << 70, "f": 1 << 70, "s": "\ud83d", "b": None, "url": "\udc00"},
        "round": {"n": 1.5, "f": 2, "s": "", "b": False, "url": ""},
        "claims": {"key": "other", "width": 9999, "has_image": False, "extra": "e", "sha256": "0", "caption": "no"},
        "none": {},
    }
    members: list[Member] = []
    for key, fields in odd.items():
        members += [*pair(key), (f"{key}.json", json.dumps(fields).encode())]
    done = embed_tar(members, columns=("n:int", "f:float", "s:string", "b:bool"))
    assert done.commit.n_written == len(odd)
    types = {field.name: field.type for field in done.metadata.schema}
    assert (types["n"], types["f"], types["s"], types["b"]) == (pa.int64(), pa.float64(), pa.string(), pa.bool_())
    rows = {row["key"]: row for row in done.metadata.to_pylist()}
    assert set(rows) == set(odd)
    columns = {key: [row[c] for c in ("n", "f", "s", "b", "url")] for key, row in rows.items()}
    assert columns["good"] == [3, 0.5, "x", True, "http://x"]
    assert columns["none"] == [None] * 5
    assert columns["wrong"] == [3, None, "4", True, None]
    assert columns["large"] == [None, float(1 << 70), None, None, None]
    assert columns["round"] == [None, 2.0, "", False, ""]
    extra = {key: json.loads(row["extra"]) for key, row in rows.items()}
    assert extra["good"] == {"other": [1, {"a": None}]}
    assert extra["wrong"] == {"f": "y", "url": 5}
    assert extra["large"] == {"n": 1 << 70, "s": "?", "url": "?", "b": None}
    assert extra["round"] == {"n": 1.5}
    assert extra["claims"] == odd["claims"]  # none of it is what was seen
    assert rows["claims"]["width"] == 24
    no_kind = "null in its column, kept in extra"
    assert done.commit.notes == {
        f"values of f are no float: {no_kind}": 1,
        f"values of n are no int: {no_kind}": 2,
        f"values of s are no string: {no_kind}": 1,
    }


def test_json_of_any_depth_costs_at_most_its_own_pair(embed_tar: Callable[..., Embedded]) -> None:
    members: list[Member] = []
    depths = [*range(880, 1010, 5), 50_000]
    for depth in depths:
        members += [*pair(str(depth)), (f"{depth}.json", b'{"x": ' + b"[" * depth + b"]" * depth + b"}")]
    done = embed_tar(members)
    assert done.commit.n_read == len(depths)
    assert set(done.rejects.values()) <= {"json nested too deeply"}
    assert "50000" in done.rejects


@pytest.mark.parametrize(
    "column", ["n", "n:", ":int", "n:text", "key:string", "extra:string", "has_text:bool", "n:int:int"]
)
def test_a_column_that_cannot_be_is_refused(column: str) -> None:
    with pytest.raises(UsageError, match="expected name:type"):
        EmbedConfig(columns=(column,))


def test_a_batch_holds_at_least_one_pair() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        EmbedConfig(batch_size=0)


class NotFinite:
    """The encoder, but for vectors of one image and one text that are no numbers."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder, self.d, self.preprocess = encoder, encoder.d, encoder.preprocess

    def encode_images(self, pixels: Pixels) -> Vectors:
        vectors = self.encoder.encode_images(pixels)
        vectors[1, 0] = np.nan
        return vectors

    def encode_texts(self, texts: list[str]) -> Vectors:
        vectors = self.encoder.encode_texts(texts)
        vectors[3, 5] = np.inf
        return vectors


def test_vectors_that_are_no_numbers_are_rejected(embed_tar: Callable[..., Embedded], encoder: Encoder) -> None:
    done = embed_tar(good_pairs(["a", "b", "c", "d", "e"]), encoder=NotFinite(encoder))
    assert done.metadata["key"].to_pylist() == ["a", "c", "e"]
    assert done.rejects == {"b": "embedding is not finite", "d": "embedding is not finite"}
    assert done.images.shape == done.texts.shape == (3, encoder.d)
    assert np.isfinite(done.images).all()
    assert (done.commit.n_read, done.commit.n_written) == (5, 3)


def test_a_shard_without_pairs_is_committed_empty(embed_tar: Callable[..., Embedded]) -> None:
    done = embed_tar(tar_bytes([]))
    assert (done.commit.n_read, done.commit.n_written, done.commit.partial) == (0, 0, None)
    assert done.images.shape == (0, 192)
    assert done.metadata.num_rows == 0


@pytest.mark.parametrize("content", [b"", b"not a tar", b"<html>not found</html>" * 100])
def test_what_is_no_tar_fails_and_is_not_committed(
    embed_tar: Callable[..., Embedded], content: bytes, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match=r"not a tar .*fetch the shard again"):
        embed_tar(content)
    assert list(tmp_path.rglob("commits/*")) == []


def test_a_broken_off_shard_is_marked_partial(embed_tar: Callable[..., Embedded]) -> None:
    whole = tar_bytes(good_pairs(["a", "b"])).rstrip(b"\0")
    whole += b"\0" * (-len(whole) % 512)
    done = embed_tar(whole + raw(tar_header("c.png"), picture())[:600])
    assert done.metadata["key"].to_pylist() == ["a", "b"]
    assert f"breaks off at byte {len(whole)}" in (done.commit.partial or "")


def test_keys_that_are_no_unicode_are_rows_and_rejects_like_others(embed_tar: Callable[..., Embedded]) -> None:
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    odd: list[Member] = [(f"{name}.png", picture()), (f"{name}.txt", b"x")]
    done = embed_tar([*odd, *pair("b"), *odd, (f"{name}2.txt", b"x")])
    assert done.metadata["key"].to_pylist() == ["caf?", "b"]
    assert done.rejects == {"caf?": "duplicate key", "caf?2": "no image"}


def test_a_shard_that_changed_or_went_since_it_was_planned_is_refused(tmp_path: Path, encoder: Encoder) -> None:
    shard = planned(tmp_path / "in.tar", pair("a"))
    store = Store(tmp_path / "memory")

    def embed() -> None:
        embed_shard(shard, encoder=encoder, store=store, config=EmbedConfig(), config_hash="")

    os.utime(tmp_path / "in.tar", (1, 1))
    with pytest.raises(SourceError, match="changed since it was planned"):
        embed()
    (tmp_path / "in.tar").unlink()
    with pytest.raises(SourceError, match="missing since it was planned"):
        embed()
    assert Manifest.read(store).commits == {}


class ChangingInput(NotFinite):
    """The encoder; while it works, somebody replaces the shard."""

    def __init__(self, encoder: Encoder, path: Path) -> None:
        super().__init__(encoder)
        self.path = path

    def encode_images(self, pixels: Pixels) -> Vectors:
        os.utime(self.path, (1, 1))
        return self.encoder.encode_images(pixels)

    def encode_texts(self, texts: list[str]) -> Vectors:
        return self.encoder.encode_texts(texts)


def test_a_shard_that_changes_while_it_is_read_is_refused(
    embed_tar: Callable[..., Embedded], encoder: Encoder, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match="changed since it was planned"):
        embed_tar(pair("a"), encoder=ChangingInput(encoder, tmp_path / "in.tar"))
    assert not (tmp_path / "memory").exists()


class FailingStore(Store):
    """Fails at one put, as a full disk does."""

    def __init__(self, root: Path, fails_at: int) -> None:
        super().__init__(root)
        self.left = fails_at

    def put(self, path: str, data: bytes) -> None:
        self.count()
        super().put(path, data)

    def create(self, path: str, data: bytes) -> None:
        self.count()
        super().create(path, data)

    def count(self) -> None:
        if self.left == 0:
            raise OSError("No space left on device")
        self.left -= 1


def test_there_is_no_record_before_all_files_lie_there(embed_tar: Callable[..., Embedded], tmp_path: Path) -> None:
    members = good_pairs(["a", "b"])
    for fails_at in range(len(FILES) + 1):
        with pytest.raises(OSError, match="No space left"):
            embed_tar(members, store=FailingStore(tmp_path / "memory", fails_at))
        assert Manifest.read(Store(tmp_path / "memory")).commits == {}
    again = embed_tar(members, store=FailingStore(tmp_path / "memory", len(FILES) + 1))
    assert again.commit.checksums == embed_tar(members, memory="fresh").commit.checksums


def test_a_worker_with_other_weights_than_the_memory_is_refused(tmp_path: Path, encoder: Encoder) -> None:
    config = EmbedConfig(columns=("n:int",))
    described = describe(encoder, config)
    assert described.columns == {"n": "int"}
    assert described.config["fingerprint"] == encoder.fingerprint
    assert described.config["batch_size"] == 256
    task = EmbedTask(
        memory=str(tmp_path), encoder=encoder.config, config=config, description=described, decode_threads=1
    )
    shard = planned(tmp_path / "in.tar", pair("a"))
    commit = task.start()(shard)
    assert commit.config_hash == described.config_hash
    assert described.config_hash != describe(encoder, EmbedConfig()).config_hash
    of_defaults = {"fingerprint": encoder.fingerprint, "precision": "fp32"}
    assert describe(encoder, EmbedConfig()).config_hash == content_hash(of_defaults)
    from dataclasses import replace

    other = replace(task, description=replace(described, fingerprint="f" * 64))
    with pytest.raises(EncoderError, match="give every node the same weights"):
        other.start()
