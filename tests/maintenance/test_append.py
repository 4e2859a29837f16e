"""Append, delete, compact, purge: each one snapshot, each finished by the same command after it was stopped."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from memory_builder.ann.parts import part_record
from memory_builder.base.runner import LocalRunner
from memory_builder.catalog.manifest import Manifest
from memory_builder.catalog.snapshots import Snapshot, read_snapshot
from memory_builder.catalog.update_snapshot import publish
from memory_builder.errors import ConcurrentWriterError, CorruptMemoryError, IndexBuildError, UsageError
from memory_builder.indexing.config import IndexConfig
from memory_builder.indexing.drift import measure_drift
from memory_builder.indexing.driver import index as index_memory
from memory_builder.maintenance.append import append
from memory_builder.maintenance.compact import compact, remove_unused
from memory_builder.maintenance.delete import delete
from memory_builder.maintenance.verify import verify
from memory_builder.memory import Memory
from memory_builder.storage.store import Store

N, D, SHARD = 400, 16, 100
Write = Callable[..., Store]
KEYS = ["IDMap2,Flat", "IVF8,Flat", "PCA16,IVF8,PQ8x4np"]
LOCAL = LocalRunner()


class Growing:
    """A memory whose shards are written one after the other."""

    def __init__(self, root: Path, write_memory: Write, clustered: Any) -> None:
        self.root, self.write = root, write_memory
        self.images, self.texts = clustered(N, D, seed=0, n_clusters=8)
        self.store = Store(root)

    def grow(self, n: int) -> None:
        self.write(self.root, self.images[:n], self.texts[:n], shard_rows=SHARD)

    def index(self, key: str, keys: tuple[Any, ...] = ("image",)) -> Snapshot:
        config = IndexConfig(index_key=key, train_threads=1, part_rows=SHARD)
        return index_memory(str(self.root), keys=keys, config=config, runner=LOCAL)

    def found(self, memory: Memory | None = None, **how: Any) -> list[int]:
        """Positions of all rows that a search which looks everywhere finds."""
        ids = (memory or Memory.open(self.root)).search(vectors=self.images[:3], k=N, nprobe=10**6, **how).ids
        assert (np.sort(ids, axis=1) == np.sort(ids[0])).all()
        return sorted(int((i >> 32) * SHARD + (i & 0xFFFFFFFF)) for i in ids[0] if i >= 0)


def row_id(position: int) -> int:
    return (position // SHARD << 32) | position % SHARD


@pytest.fixture
def growing(tmp_path: Path, write_memory: Write, clustered: Any) -> Growing:
    growing = Growing(tmp_path / "memory", write_memory, clustered)
    growing.grow(200)
    return growing


@pytest.mark.parametrize("key", KEYS)
def test_rows_come_and_go_and_every_answer_is_that_of_the_rows_there_are(growing: Growing, key: str) -> None:
    growing.index(key, ("image", "text"))
    trained = Path(growing.store.full(f"{read_snapshot(growing.store).indexes['image'].index}/trained.faiss"))
    before = Memory.open(growing.root)
    growing.grow(300)
    append(growing.store, runner=LOCAL)
    growing.grow(400)
    append(growing.store, runner=LOCAL)
    inode = trained.stat().st_ino
    assert growing.found() == list(range(400))
    gone = [*range(60), *range(150, 290), 399]
    deleted = Memory.open(growing.root).delete(ids=[row_id(i) for i in gone])
    left = sorted(set(range(400)) - set(gone))
    assert len(deleted) == len(left)
    for memory in (deleted, Memory.open(growing.root), deleted.compact()):
        assert growing.found(memory) == left
        assert growing.found(memory, keys="text") == left
        # the best rows, found and re-ranked as tuned for, and at least as good as without the deleted rows
        hits = memory.search(vectors=growing.images[gone[:5]], k=10, nprobe=10**6, refine=N)
        expected = -np.sort(-(growing.images[gone[:5]] @ memory.vectors([row_id(i) for i in left]).T), axis=1)[:, :10]
        np.testing.assert_allclose(hits.scores, expected, atol=2e-3)
    assert growing.found(before) == list(range(200))  # opened long ago, and searched only now
    snapshot = read_snapshot(growing.store)
    assert snapshot.number == 5
    assert all(sum(map(len, view.segments)) == 1 for view in snapshot.indexes.values())
    assert snapshot.indexes["image"].n_rows == len(left)
    assert verify(growing.store, LOCAL) == []
    assert trained.stat().st_ino == inode


def test_compacted_parts_hold_what_a_filling_with_the_remaining_rows_would(growing: Growing, tmp_path: Path) -> None:
    view = growing.index("IVF8,Flat").indexes["image"]
    delete(growing.store, ids=[row_id(i) for i in range(50, 120)])
    after = compact(growing.store, runner=LOCAL).indexes["image"]
    index = faiss.read_index(growing.store.full(f"{view.index}/trained.faiss"))
    left = [*range(50), *range(120, 200)]
    memory = Memory.open(growing.root)
    ids = np.array([row_id(i) for i in left])
    for shard in range(2):
        here = ids[ids >> 32 == shard]
        index.add_with_ids(memory.vectors(here), here)
    faiss.write_index(index, str(tmp_path / "expected.faiss"))
    (name,) = after.segments[0]
    assert growing.store.read(f"{view.index}/parts/{name}.faiss") == (tmp_path / "expected.faiss").read_bytes()
    assert compact(growing.store, runner=LOCAL) == read_snapshot(growing.store)  # nothing left to do
    assert read_snapshot(growing.store).number == 3


def test_indexing_again_keeps_what_was_compacted_and_mends_it(growing: Growing) -> None:
    trained = growing.index("IVF8,Flat").indexes["image"].index
    delete(growing.store, ids=[row_id(i) for i in range(50, 120)])
    assert growing.index("IVF8,Flat").indexes["image"].index != trained  # of the rows that are left
    compacted = compact(growing.store, runner=LOCAL)
    assert growing.index("IVF8,Flat") == compacted
    view = compacted.indexes["image"]
    part = f"{view.index}/parts/{view.segments[0][0]}.faiss"
    growing.store.put(part, growing.store.read(part)[:-1])
    repairs = growing.index("IVF8,Flat")
    assert repairs.number == compacted.number + 1
    assert growing.found() == [*range(50), *range(120, 200)]


def test_large_clean_parts_are_left_alone(growing: Growing) -> None:
    growing.grow(400)
    view = growing.index("IVF8,Flat").indexes["image"]
    delete(growing.store, ids=[row_id(150)])
    after = compact(growing.store, runner=LOCAL, part_rows=150).indexes["image"]
    kept = set(view.segments[0]) & set(after.segments[0])
    assert kept == {"00000-00000", "00002-00002", "00003-00003"}
    assert [part_record(growing.store, view.index, name).n_rows for name in after.segments[0]] == [100, 99, 100, 100]


def test_deleted_rows_that_lack_the_modality_make_no_room_in_a_part(
    tmp_path: Path, write_memory: Write, clustered: Any
) -> None:
    growing = Growing(tmp_path / "memory", write_memory, clustered)
    growing.images[np.arange(N) % SHARD >= 90] = growing.images[11:SHARD] = 0
    growing.grow(400)
    view = growing.index("IVF8,Flat").indexes["image"]
    delete(growing.store, ids=[row_id(i) for i in range(11, SHARD)])
    after = compact(growing.store, runner=LOCAL, part_rows=2 * SHARD).indexes["image"]
    assert [part_record(growing.store, view.index, name).n_rows for name in after.segments[0]] == [191, 90]


def test_rows_are_deleted_by_key_by_filter_and_once(growing: Growing, capsys: pytest.CaptureFixture[str]) -> None:
    growing.index("IVF8,Flat")
    delete(growing.store, keys=["00000003", "00000150", "nobody"])
    assert "1 keys are in no shard: nobody" in capsys.readouterr().err
    again = delete(growing.store, keys=["00000003"])
    assert again.number == 2
    delete(growing.store, where="key >= '00000190'")
    assert growing.found() == sorted({*range(190)} - {3, 150})


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ({}, "exactly one of ids, keys and where"),
        ({"ids": [1], "keys": ["a"]}, "exactly one"),
        ({"ids": [0, 100, -1]}, "-1, 100 not in"),
        ({"ids": [7 << 32]}, "30064771072 not in"),
        ({"ids": [0.5]}, "whole numbers, not float64"),
        ({"ids": []}, "nothing to delete"),
        ({"keys": ["nobody"]}, "nothing to delete"),
        ({"where": "width > 1000"}, "nothing to delete"),
        ({"where": "depth > 1"}, "no column depth: the columns are key, caption"),
    ],
)
def test_what_cannot_be_deleted_is_told_and_nothing_is_changed(
    growing: Growing, named: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        delete(growing.store, **named)
    assert read_snapshot(growing.store).number == 0


def test_a_memory_whose_rows_are_all_deleted_finds_nothing(growing: Growing) -> None:
    growing.index("IVF8,Flat")
    memory = Memory.open(growing.root).delete(where="has_image")
    assert (len(memory), growing.found(memory)) == (0, [])
    memory = memory.compact()
    assert (memory.search(vectors=np.ones(D), k=3).ids == -1).all()
    growing.grow(300)
    assert growing.found(memory.append()) == list(range(200, 300))
    assert verify(growing.store, LOCAL) == []


def test_appending_without_an_index_and_without_new_shards(growing: Growing) -> None:
    with pytest.raises(IndexBuildError, match="no index to append to: run memory-builder index"):
        append(growing.store, runner=LOCAL)
    before = growing.index("IVF8,Flat")
    assert append(growing.store, runner=LOCAL) == before
    with pytest.raises(IndexBuildError, match="no index of text vectors"):
        append(growing.store, runner=LOCAL, modalities=["text"])


def test_purged_rows_leave_no_trace_and_verify_stays_green(growing: Growing) -> None:
    growing.index("IVF8,Flat", ("image", "text"))
    memory = Memory.open(growing.root)
    vectors = {memory.vectors([5], keys).astype(np.float16).tobytes() for keys in ("image", "text")}
    exact = {memory.vectors([5], keys).tobytes() for keys in ("image", "text")}
    kept = memory.metadata([4, 6]).to_pylist()
    memory = memory.delete(ids=[5]).compact(purge=True)
    files = {file: file.read_bytes() for file in growing.root.rglob("*") if file.is_file()}
    assert not [file for file, data in files.items() for vector in vectors | exact if vector in data]
    assert not [file for file, data in files.items() if b"caption 5\0" in data or b"caption 5c" in data]
    row = memory.metadata([5]).to_pylist()[0]
    assert (row["key"], row["caption"], row["url"], row["has_image"]) == ("00000005", None, None, False)
    assert memory.rows([5]).to_pylist() == [{"id": 5, "key": "00000005", "caption": None, "url": None}]
    assert not memory.vectors([5]).any()
    assert memory.metadata([4, 6]).to_pylist() == kept
    assert growing.found(memory) == sorted({*range(200)} - {5})
    assert verify(growing.store, LOCAL) == []
    states = {file.name: file.read_bytes() for file in growing.root.glob("*/*00000*")}
    compact(growing.store, runner=LOCAL, purge=True)  # twice is once
    assert states == {file.name: file.read_bytes() for file in growing.root.glob("*/*00000*")}
    memory = memory.delete(ids=[6]).compact(purge=True)
    assert memory.rows([5, 6])["caption"].to_pylist() == [None, None]
    assert verify(growing.store, LOCAL) == []
    (growing.root / "img_emb" / "img_emb_00000.npy").write_bytes(b"x")
    assert [problem.file for problem in verify(growing.store, LOCAL)] == ["img_emb/img_emb_00000.npy"]


def test_only_files_that_no_kept_state_names_are_removed(growing: Growing) -> None:
    growing.index("IVF8,Flat")
    for position in (0, 1, 2):
        delete(growing.store, ids=[row_id(position)])
        compact(growing.store, runner=LOCAL)
    numbers = len(list(growing.root.glob("index/*/parts/*.faiss"))), len(growing.store.list("tombstones"))
    assert numbers == (2 + 3, 3)  # a reader of ten minutes ago goes on
    growing.store.put("tombstones/99.npy", b"of a writer that is about to make a state")
    removed = remove_unused(growing.store, keep_s=0)
    assert read_snapshot(growing.store).number == 7
    # the last two states are after the third deletion, before and after its compaction
    assert len(list(growing.root.glob("index/*/parts/*.faiss"))) == 2
    assert growing.store.list("tombstones") == ["6.npy", "99.npy"]
    assert len(removed) == 2 * 3 + 2
    assert growing.found() == list(range(3, 200))


@pytest.mark.parametrize("damage", ["gone", "cut", "flipped", "pickled", "unsorted"])
def test_damaged_tombstones_are_told_not_ignored(growing: Growing, damage: str) -> None:
    growing.index("IVF8,Flat")
    path = delete(growing.store, ids=[1, 2, 3]).tombstones
    assert path == "tombstones/2.npy"
    data = growing.store.read(path)
    if damage == "gone":
        growing.store.remove(path)
    elif damage == "pickled":
        np.save(growing.store.full(path), np.array([{"a": 1}], object), allow_pickle=True)
    else:
        bad = {"cut": data[:-4], "flipped": data[:-8] + b"\5" + data[-7:], "unsorted": data[:-8] + data[-16:-8]}
        growing.store.put(path, bad[damage])
    with pytest.raises(CorruptMemoryError, match=r"tombstones/2\.npy"):
        Memory.open(growing.root)
    with pytest.raises(CorruptMemoryError, match=r"tombstones/2\.npy"):
        delete(growing.store, ids=[4])
    assert [problem.file for problem in verify(growing.store, LOCAL)] == [path]


def test_a_late_writer_starts_from_the_newer_state(growing: Growing) -> None:
    growing.index("IVF8,Flat")
    growing.grow(300)
    stale = read_snapshot(growing.store)

    class Overtaken(LocalRunner):
        """Another writer deletes a row while our parts are filled."""

        def run(self, task: Any, items: Any) -> Any:
            if growing.store.list("snapshots") == ["1.json"]:
                delete(growing.store, ids=[7])
            yield from super().run(task, items)

    after = append(growing.store, runner=Overtaken())
    assert after.number == 3
    assert growing.found() == sorted({*range(300)} - {7})
    with pytest.raises(ConcurrentWriterError, match="another writer made snapshot 2"):
        publish(growing.store, Snapshot(number=2, manifest_version=1, indexes=stale.indexes))

    class Rebuilt(LocalRunner):
        """Another writer builds the index anew while we compact."""

        def run(self, task: Any, items: Any) -> Any:
            growing.index("IVF4,Flat")
            yield from super().run(task, items)

    with pytest.raises(ConcurrentWriterError, match="run compact again"):
        compact(growing.store, runner=Rebuilt())
    assert verify(growing.store, LOCAL) == []


class Interrupted(Store):
    """A store whose writer dies at its n-th write, before or after it. Locks apart: they know that we are alive."""

    def __init__(self, root: str, left: int, *, after: bool) -> None:
        super().__init__(root)
        self.left, self.after = left, after

    def _count(self, path: str, write: Callable[[], None]) -> None:
        counts = not path.endswith(".lock")
        if counts and self.left == 0 and not self.after:
            raise KeyboardInterrupt
        write()
        if counts and self.left == 0:
            raise KeyboardInterrupt
        self.left -= counts

    @contextmanager
    def writing(self, path: str) -> Iterator[Path]:
        with ExitStack() as stack:
            yield stack.enter_context(super().writing(path))
            self._count(path, stack.close)

    def create(self, path: str, data: bytes) -> None:
        self._count(path, lambda: super(Interrupted, self).create(path, data))

    def remove(self, path: str) -> None:
        self._count(path, lambda: super(Interrupted, self).remove(path))


@pytest.mark.parametrize("what", ["append", "delete", "compact", "purge"])
def test_stopped_at_any_write_it_is_the_old_state_or_the_new_and_goes_on(
    growing: Growing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    growing.index("IVF8,Flat")
    growing.grow(300)
    if what != "append":
        delete(growing.store, ids=[row_id(i) for i in range(90, 110)])
    commands: dict[str, Callable[[Store], Any]] = {
        "append": lambda store: append(store, runner=LOCAL),
        "delete": lambda store: delete(store, ids=[0, 1]),
        "compact": lambda store: compact(store, runner=LOCAL),
        "purge": lambda store: compact(store, runner=LOCAL, purge=True),
    }
    command = commands[what]
    fresh = growing.root.rename(tmp_path / "fresh")
    old = growing.found(Memory.open(fresh))
    for n in range(1000):
        shutil.rmtree(growing.root, ignore_errors=True)
        shutil.copytree(fresh, growing.root)
        try:
            with monkeypatch.context() as patch:  # workers open stores of their own
                store = Interrupted(str(growing.root), n // 2, after=bool(n % 2))
                for module in ("ann.parts", "maintenance.purge"):
                    patch.setattr(f"memory_builder.{module}.Store", lambda _, store=store: store)
                command(store)
        except KeyboardInterrupt:
            stopped = growing.found()
            command(Store(growing.root))
            new = growing.found()
            assert stopped in (old, new)
            assert verify(growing.store, LOCAL) == []
        else:
            break
    assert n >= 4
    assert new == {"append": list(range(300)), "delete": sorted({*range(2, 200)} - {*range(90, 110)})}.get(what, old)


def test_rows_of_another_kind_call_for_training(
    tmp_path: Path, write_memory: Write, clustered: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    images, texts = clustered(3_000, D, seed=0, n_clusters=20)
    other = clustered(1_000, D, seed=1, n_clusters=2)[0]
    for name, more in (("same", images[2_000:]), ("other", other)):
        root = tmp_path / name
        store = write_memory(root, images[:2_000], texts[:2_000], shard_rows=1_000)
        view = index_memory(
            str(root), keys=("image",), config=IndexConfig(index_key="IVF16,Flat", train_threads=1), runner=LOCAL
        ).indexes["image"]
        write_memory(root, np.concatenate([images[:2_000], more]), np.concatenate([texts[:2_000], more]))
        capsys.readouterr()
        append(store, runner=LOCAL)
        assert ("retrain with memory-builder index" in capsys.readouterr().err) == (name == "other")
        fits = measure_drift(store, view.index, "image", [Manifest.read(store).commits[2]])
        assert fits is not None
        ratio = fits[1].error / fits[0].error
        assert ratio == pytest.approx(1, abs=0.1) if name == "same" else ratio > 1.25
