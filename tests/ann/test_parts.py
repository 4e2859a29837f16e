"""Parts are filled once, from the quantizer they belong to, with every row that has the modality."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from memory_builder.ann.parts import (
    Part,
    PartRecord,
    fill_part,
    plan_parts,
    read_faiss,
    read_part_record,
    read_quantizer_hash,
    write_faiss,
)
from memory_builder.ann.quantizer import train_quantizer
from memory_builder.catalog.commits import Commit
from memory_builder.catalog.manifest import Manifest
from memory_builder.errors import CorruptMemoryError, IndexBuildError
from memory_builder.storage.store import Store

N, D, FOLDER = 300, 16, "index/x"


def commit_of(ordinal: int, n_images: int, n_texts: int) -> Commit:
    return Commit(
        ordinal=ordinal,
        uri="",
        etag="",
        config_hash="",
        n_read=100,
        n_written=100,
        n_images=n_images,
        n_texts=n_texts,
        reasons={},
        partial=None,
        checksums={},
    )


def test_shards_are_grouped_in_order_and_never_split() -> None:
    commits = [commit_of(n, 40, 90) for n in (0, 1, 2, 5, 7)]
    images = plan_parts(commits, "image", 100)
    assert [part.ordinals for part in images] == [(0, 1), (2, 5), (7,)]
    assert [part.name for part in images] == ["00000-00001", "00002-00005", "00007-00007"]
    assert [part.ordinals for part in plan_parts(commits, "text", 100)] == [(0,), (1,), (2,), (5,), (7,)]
    assert [part.ordinals for part in plan_parts(commits, "image", 1)] == [(0,), (1,), (2,), (5,), (7,)]
    assert len(plan_parts(commits, "image", 10**9)) == 1
    assert plan_parts([], "image", 100) == []


@pytest.fixture
def memory(write_memory: Callable[..., Store], clustered: Any, tmp_path: Path) -> Store:
    images, texts = clustered(N, D, seed=0)
    images[[3, 150]] = 0
    store = write_memory(tmp_path, images, texts, shard_rows=100)
    trained = train_quantizer("IVF4,Flat", images, threads=1)
    _, digest = write_faiss(store, f"{FOLDER}/trained.faiss", trained)
    store.put(f"{FOLDER}/trained.json", b'{"sha256": "%s"}' % digest.encode())
    return store


def fill(store: Store, part: Part, **changed: Any) -> PartRecord:
    settings = {
        "store": store,
        "folder": FOLDER,
        "modality": "image",
        "d": D,
        "commits": Manifest.read_folded(store).commits,
        "quantizer_sha256": read_quantizer_hash(store, FOLDER),
        "threads": 1,
    }
    return fill_part(part, **settings | changed)


PART = Part(name="00000-00001", ordinals=(0, 1))


def test_a_part_holds_the_rows_that_have_the_modality_under_their_ids(memory: Store) -> None:
    record = fill(memory, PART)
    assert record.n_rows == 198
    index = read_faiss(memory.fetch(f"{FOLDER}/parts/{PART.name}.faiss"), "part")
    ids = np.concatenate([faiss.rev_swig_ptr(index.invlists.get_ids(i), index.invlists.list_size(i)) for i in range(4)])
    expected = {(n // 100 << 32) | n % 100 for n in range(200)} - {3, (1 << 32) | 50}
    assert set(ids.tolist()) == expected


def test_the_record_says_what_the_file_is(memory: Store) -> None:
    record = fill(memory, PART)
    path = f"{FOLDER}/parts/{PART.name}.faiss"
    assert record.bytes == memory.size(path)
    assert record.sha256 == memory.checksum(path)
    assert record.quantizer_sha256 == memory.checksum(f"{FOLDER}/trained.faiss")
    assert read_part_record(memory, FOLDER, PART.name) == record
    assert read_part_record(memory, FOLDER, "other") is None


def test_a_finished_part_is_left_alone_and_an_unrecorded_one_is_made_again(memory: Store) -> None:
    record = fill(memory, PART)
    path = Path(memory.full(f"{FOLDER}/parts/{PART.name}.faiss"))
    before = path.stat().st_ino
    assert fill(memory, PART) == record
    assert path.stat().st_ino == before
    memory.remove(f"{FOLDER}/parts/{PART.name}.json")
    assert fill(memory, PART) == record  # the same bytes
    assert path.stat().st_ino != before


def test_a_part_of_another_quantizer_is_refused(memory: Store) -> None:
    record = fill(memory, PART)
    with pytest.raises(IndexBuildError, match="was filled with quantizer"):
        fill(memory, PART, quantizer_sha256="0" * 64)
    memory.remove(f"{FOLDER}/parts/{PART.name}.json")
    with pytest.raises(IndexBuildError, match="is not the quantizer of this index"):
        fill(memory, PART, quantizer_sha256="0" * 64)
    assert read_part_record(memory, FOLDER, PART.name) is None
    assert replace(record, quantizer_sha256="0" * 64) != record
    assert set(asdict(record)) == {"name", "ordinals", "n_rows", "bytes", "sha256", "quantizer_sha256", "n_deleted"}


def test_missing_vectors_leave_no_part(memory: Store) -> None:
    memory.remove("img_emb/img_emb_00001.npy")
    with pytest.raises(CorruptMemoryError, match="img_emb_00001"):
        fill(memory, PART)
    assert memory.list(f"{FOLDER}/parts") == []


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b'{"ordinals": 3}', b"\xff"])
def test_a_damaged_record_is_named_by_readers_and_made_anew_by_filling(memory: Store, data: bytes) -> None:
    whole = fill(memory, PART)
    memory.put(f"{FOLDER}/parts/{PART.name}.json", data)
    with pytest.raises(CorruptMemoryError, match=PART.name):
        read_part_record(memory, FOLDER, PART.name)
    assert fill(memory, PART) == whole
    assert read_part_record(memory, FOLDER, PART.name) == whole
    memory.put(f"{FOLDER}/trained.json", data)
    with pytest.raises(CorruptMemoryError, match=r"trained\.json"):
        read_quantizer_hash(memory, FOLDER)


@pytest.mark.parametrize("data", [b"", b"hello", b"IxFI" + b"\xff" * 100])
def test_a_file_that_is_no_index_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.faiss").write_bytes(data)
    with pytest.raises(CorruptMemoryError, match="the part cannot be read"):
        read_faiss(tmp_path / "x.faiss", "the part")
    with pytest.raises(CorruptMemoryError, match="the part is missing"):
        read_faiss(tmp_path / "y.faiss", "the part")
