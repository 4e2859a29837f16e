"""An index that is built after rows were deleted, or purged, knows nothing of them: no sample, query, truth or part."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.stopping import Stopping
from memory_builder.ann.parts import part_record
from memory_builder.base.runner import LocalRunner
from memory_builder.catalog.manifest import Manifest
from memory_builder.catalog.rows import Rows
from memory_builder.catalog.snapshots import IndexView, Snapshot, read_snapshot
from memory_builder.errors import IndexBuildError
from memory_builder.indexing.auto_key import TrialTask, run_trial
from memory_builder.indexing.config import IndexConfig
from memory_builder.indexing.driver import index as index_memory
from memory_builder.maintenance.append import append
from memory_builder.maintenance.compact import compact
from memory_builder.maintenance.delete import delete
from memory_builder.maintenance.verify import verify
from memory_builder.memory import Memory
from memory_builder.storage.store import Store

N, D, SHARD = 600, 16, 200
FIXTURES = Path(__file__).parents[1] / "fixtures"
LOCAL = LocalRunner()
Write = Callable[..., Store]
DELETED = [*range(90), *range(150, 260), 599]
"""Most rows of one shard, some of the next, one of the last; rows without a picture among them."""


def row_ids(positions: Any) -> Any:
    places = np.asarray(positions, np.int64)
    return (places // SHARD << 32) | places % SHARD


@pytest.fixture(params=["every row has both sides", "some rows lack a side"])
def sides(request: pytest.FixtureRequest, clustered: Any) -> Any:
    images, texts = clustered(N, D, seed=0, n_clusters=8)
    if request.param == "some rows lack a side":
        images[::3] = 0
        texts[1::3] = 0
    return images, texts


@pytest.fixture
def store(write_memory: Write, sides: Any, tmp_path: Path) -> Store:
    return write_memory(tmp_path / "memory", *sides, shard_rows=SHARD)


def build(store: Store, key: str | None = "IVF8,Flat", runner: Any = LOCAL) -> Snapshot:
    config = IndexConfig(index_key=key, train_threads=1, part_rows=250)
    return index_memory(store.root, keys=("image", "text"), config=config, runner=runner)


def left(vectors: Any, deleted: list[int] = DELETED) -> Any:
    """Positions of the rows that have this side and are not deleted."""
    return np.setdiff1d(np.flatnonzero(vectors.any(axis=1)), deleted)


def held_out(store: Store, view: IndexView) -> Any:
    return np.load(store.full(f"{view.index}/held_out.npy"))


def built_files(store: Store) -> dict[str, bytes]:
    """What must be the same bytes each time."""
    kept = (".faiss", "held_out.npy", "trained.json")
    root = Path(store.root)
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.name.endswith(kept)}


@pytest.mark.parametrize("purge", [False, True], ids=["deleted", "purged"])
def test_deleted_rows_are_neither_sampled_nor_held_out_nor_filled_in(store: Store, sides: Any, purge: bool) -> None:
    build(store, None)
    delete(store, ids=row_ids(DELETED))
    if purge:
        compact(store, runner=LOCAL, purge=True)
    snapshot = build(store)
    for keys, vectors in zip(("image", "text"), sides, strict=True):
        view, there = snapshot.indexes[keys], row_ids(left(vectors))
        trained = json.loads(store.read(f"{view.index}/trained.json"))
        assert trained["n_rows"] == view.n_rows == len(there)
        assert (trained["n_train"], trained["n_held_out"]) == (len(there) - len(there) // 20, len(there) // 20)
        assert np.isin(held_out(store, view), there).all()
        records = [part_record(store, view.index, name) for name in view.segments[0]]
        assert sum(record.n_deleted for record in records) == len(DELETED)
        found = Memory.open(store.root).search(vectors=np.ones(D), k=N, nprobe=99, keys=keys).ids[0]  # type: ignore[arg-type]
        assert sorted(found[found >= 0].tolist()) == there.tolist()
    assert verify(store, LOCAL) == []
    assert compact(store, runner=LOCAL, part_rows=1) == snapshot  # there is nothing to take out


def test_what_is_deleted_is_not_counted_as_missed(store: Store) -> None:
    delete(store, ids=row_ids(DELETED))
    build(store, None)
    memory = Memory.open(store.root)
    assert [memory.tuning(keys)["sides"]["image"]["recall@10"] for keys in ("image", "text")] == [1.0, 1.0]  # type: ignore[arg-type]


def test_purging_changes_neither_the_folder_nor_a_byte_of_it(store: Store, tmp_path: Path) -> None:
    build(store, "IVF4,Flat")
    delete(store, ids=row_ids(DELETED))
    shutil.copytree(store.root, tmp_path / "purged")
    purged = Store(tmp_path / "purged")
    compact(purged, runner=LOCAL, purge=True)
    views = [build(some).indexes for some in (store, purged)]
    assert views[0] == views[1]
    folders = {view.index for view in views[0].values()}
    files = [
        {path: data for path, data in built_files(some).items() if str(Path(path).parent).startswith(tuple(folders))}
        for some in (store, purged)
    ]
    assert files[0] == files[1]
    assert len(files[0]) == 2 * (3 + 3)  # quantizer, its record, held-out rows, and three parts


@pytest.mark.parametrize("after", [0, 1, 3, 5, 9])
def test_a_stopped_build_goes_on_and_ends_with_the_same_bytes(store: Store, tmp_path: Path, after: int) -> None:
    delete(store, ids=row_ids(DELETED))
    compact(store, runner=LOCAL, purge=True)
    shutil.copytree(store.root, tmp_path / "whole")
    whole = build(Store(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        build(store, runner=Stopping(after))
    assert build(store) == whole
    assert built_files(store) == built_files(Store(tmp_path / "whole"))


def test_only_a_deletion_makes_it_another_index(tmp_path: Path) -> None:
    root = Path(shutil.copytree(FIXTURES / "memory-v1", tmp_path / "memory"))
    config = IndexConfig(train_threads=2)
    before = read_snapshot(Store(root)).indexes["image"]  # built by the first version
    assert index_memory(str(root), keys=("image",), config=config, runner=LOCAL).indexes["image"] == before
    Memory.open(root).delete(ids=[0])
    after = index_memory(str(root), keys=("image",), config=config, runner=LOCAL).indexes["image"]
    assert after.index != before.index
    assert index_memory(str(root), keys=("image",), config=config, runner=LOCAL).indexes["image"] == after


def test_append_fills_in_what_is_left_of_the_new_shards(
    write_memory: Write, sides: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, texts = sides
    store = write_memory(tmp_path / "memory", images[:400], texts[:400], shard_rows=SHARD)
    build(store)
    write_memory(tmp_path / "memory", images, texts, shard_rows=SHARD)
    gone = [*range(100, 110), *range(400, 460)]
    delete(store, ids=row_ids(gone))
    compact(store, runner=LOCAL, purge=True)
    snapshot = append(store, runner=LOCAL)
    assert "warning" not in capsys.readouterr().err
    for keys, vectors in zip(("image", "text"), sides, strict=True):
        view = snapshot.indexes[keys]
        (name,) = view.segments[-1]
        there = left(vectors, gone)
        record = part_record(store, view.index, name)
        assert (record.n_rows, record.n_deleted) == (int((there >= 400).sum()), 60)
        assert view.n_rows == len(there)
    assert verify(store, LOCAL) == []


def test_a_trial_is_made_of_what_is_left(store: Store, sides: Any) -> None:
    delete(store, ids=row_ids(DELETED))
    compact(store, runner=LOCAL, purge=True)
    task = TrialTask(
        memory=store.root,
        folder="index/trial",
        modality="image",
        ordinals=tuple(Manifest.read(store).commits),
        target_recall=0.95,
        train_threads=1,
        seed=0,
        device="cpu",
        deleted_as_of=read_snapshot(store),
    )
    n = len(left(sides[0]))
    assert run_trial(task, "IVF4,Flat").n_rows == n - n // 20


def test_positions_are_those_of_the_rows_that_are_left(store: Store, sides: Any) -> None:
    commits = Manifest.read(store).commits
    rows = Rows(store, commits, D, row_ids(DELETED))
    for keys, vectors in zip(("image", "text"), sides, strict=True):
        there = row_ids(left(vectors))
        assert rows.n_present(keys) == len(there)  # type: ignore[arg-type]
        assert rows.ids_at(np.arange(len(there)), keys).tolist() == there.tolist()  # type: ignore[arg-type]
        assert rows.ids_at(np.array([3, len(there) - 1]), keys).tolist() == there[[3, -1]].tolist()  # type: ignore[arg-type]


def test_a_memory_whose_rows_are_all_deleted_has_nothing_to_index(store: Store) -> None:
    build(store)
    delete(store, ids=row_ids(range(N)))
    with pytest.raises(IndexBuildError, match="no image vectors to index"):
        build(store)
