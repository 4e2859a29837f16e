"""Merge the parts of an index into one on-disk index that plain faiss opens.

Workers copy ranges of inverted lists, each into a file with a second one of list sizes; the driver joins the files.
Only one list is in memory at a time. After a kill, the same command resumes.
"""

import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import faiss
import numpy as np

from memory_builder.ann.inverted_lists import ID_BYTES, LISTS, POPULATED, Codes, with_lists_on_disk
from memory_builder.ann.parts import open_trained, trained_record, write_faiss
from memory_builder.base.log import logger
from memory_builder.base.runner import Runner
from memory_builder.base.stage import Stage
from memory_builder.base.types import Ids, Modality
from memory_builder.catalog.commits import refuse_uncommitted
from memory_builder.catalog.dense_ids import DenseIds
from memory_builder.catalog.manifest import Manifest
from memory_builder.catalog.snapshots import Snapshot, read_snapshot, read_tuning
from memory_builder.catalog.tombstones import current_tombstones
from memory_builder.errors import UsageError
from memory_builder.search.filtered import lists_for
from memory_builder.search.open_index import OpenIndex, ef_search
from memory_builder.storage.formats import npy_bytes, read_npy
from memory_builder.storage.records import (
    Count,
    ShortHash,
    content_hash,
    read_sound_record,
    strict_record,
    write_record,
)
from memory_builder.storage.store import Store

RANGE_BYTES = 256 << 20
RECORD = "merged.json"


@strict_record
@dataclass(frozen=True, kw_only=True, slots=True)
class Merged:
    """``merged.json``: the record of a merged index."""

    state: ShortHash
    """Hash of its content: parts, deleted rows, numbering."""
    n_rows: Count
    n_lists: Count
    bytes: Count
    """Bytes of the inverted lists."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ListRange:
    """Inverted lists ``start`` to ``stop - 1``."""

    start: int
    stop: int


def merge(store: Store, modality: Modality, *, runner: Runner, range_bytes: int = RANGE_BYTES) -> Merged:
    """Merge the current parts of one index into its ``merged/`` folder, without deleted rows.

    Keeps row ids. The memory still searches its parts.

    Raises:
        IndexBuildError: this modality is not indexed.
        UsageError: the index has no inverted lists.
    """
    store.sweep()
    snapshot = read_snapshot(store)
    folder = snapshot.view(modality, store.root).index
    logger.info(f"merge {modality}: {store.root}/{folder}")
    return merge_into(store, f"{folder}/merged", store, snapshot, modality, runner=runner, range_bytes=range_bytes)


def merge_into(
    out: Store,
    target: str,
    store: Store,
    snapshot: Snapshot,
    modality: Modality,
    *,
    numbered: tuple[int, ...] | None = None,
    runner: Runner,
    range_bytes: int = RANGE_BYTES,
) -> Merged:
    """Merge as ``merge`` does, into folder ``target`` of another store.

    Args:
        numbered: shards whose rows are renumbered from 0 by ``DenseIds``; without it, row ids are kept.
    """
    task = MergeTask(memory=store, snapshot=snapshot, modality=modality, out=out, target=target, numbered=numbered)
    merged_before = read_sound_record(out, f"{target}/{RECORD}", Merged)
    if (
        merged_before is not None
        and merged_before.state == task.state
        and all(out.exists(f"{target}/{name}") for name in (POPULATED, LISTS))
    ):
        _remove_ranges(out, target)
        return merged_before
    index = open_lists(store, snapshot, modality)
    ranges = plan_ranges(index.list_sizes(), index.code_bytes, range_bytes)
    stage = Stage(name=f"merge {modality}: gathered", task=task, runner=runner, unit="ranges of lists")
    for _ in stage.results(ranges):
        pass
    sizes = np.concatenate([_sizes(out, task.path(lists)) for lists in ranges])
    merged = Merged(
        state=task.state,
        n_rows=int(sizes.sum()),
        n_lists=len(sizes),
        bytes=int(sizes.sum()) * (index.code_bytes + ID_BYTES),
    )
    empty = open_trained(store, snapshot.indexes[modality].index)
    tuned = set_nprobe(with_lists_on_disk(empty, sizes), store, snapshot, modality)
    _join(out, target, [f"{task.path(lists)}.lists" for lists in ranges], tuned)
    write_record(out, f"{target}/{RECORD}", merged)
    _remove_ranges(out, target)
    return merged


def _remove_ranges(out: Store, target: str) -> None:
    """Remove the files of ranges: of this merge, and of killed ones."""
    for name in out.list(target):
        if name.startswith("lists-"):
            out.remove(f"{target}/{name}")


def _join(out: Store, target: str, pieces: Sequence[str], populated: Any) -> None:
    for stale in (RECORD, POPULATED):  # the lists change next; without these files, nothing opens them
        with suppress(FileNotFoundError):
            out.remove(f"{target}/{stale}")
    with out.writing(f"{target}/{LISTS}") as joined, joined.open("wb") as file:
        for path in pieces:
            with out.open(path) as piece:
                shutil.copyfileobj(piece, file, 1 << 20)
    write_faiss(out, f"{target}/{POPULATED}", populated)


def open_lists(store: Store, snapshot: Snapshot, modality: Modality) -> OpenIndex:
    """Open the parts of an index that has inverted lists.

    Raises:
        UsageError: the index has none.
    """
    view = snapshot.view(modality, store.root)
    index = OpenIndex(store, view.index, view.parts)
    if index.is_exact:
        raise UsageError(
            f"the index of {modality} vectors of {store.root} is exact and has no inverted lists to merge: "
            "build it with an --index-key such as IVF1024,Flat, or export it"
        )
    return index


def remove_merged(store: Store, folders: Sequence[str]) -> None:
    """Remove the merged indexes in these index folders, records first: they may hold deleted rows."""
    for folder in folders:
        names = store.list(f"{folder}/merged")
        for name in sorted(names, key=lambda name: name != RECORD):
            store.remove(f"{folder}/merged/{name}")


def plan_ranges(sizes: Ids, code_bytes: int, range_bytes: int) -> list[ListRange]:
    """Split lists of i64[nlist] rows into consecutive ranges of about ``range_bytes``; a list is never split."""
    filled = np.cumsum(sizes * (code_bytes + ID_BYTES)) // range_bytes
    starts = [0, *(np.flatnonzero(np.diff(filled)) + 1).tolist(), len(sizes)]
    return [ListRange(start=start, stop=stop) for start, stop in pairwise(starts)]


def set_nprobe(index: Any, store: Store, snapshot: Snapshot, modality: Modality) -> Any:
    """Set the filled index's nprobe to that of the memory's searches; returns the index."""
    view = snapshot.indexes[modality]
    sides = read_tuning(store, view)["sides"].values()
    ivf = faiss.downcast_index(faiss.extract_index_ivf(index))
    nprobe = max((side["nprobe"] for side in sides), default=ivf.nlist)
    n_tuned = trained_record(store, view.index).n_rows or index.ntotal
    ivf.nprobe = lists_for(index.ntotal, nprobe, n_tuned, ivf.nlist)
    quantizer = faiss.downcast_index(ivf.quantizer)
    if isinstance(quantizer, faiss.IndexHNSW):
        quantizer.hnsw.efSearch = ef_search(ivf.nprobe)
    return index


@dataclass(frozen=True, kw_only=True, slots=True)
class MergeTask:
    """Worker that copies ranges of inverted lists."""

    memory: Store | str
    snapshot: Snapshot
    modality: Modality
    out: Store | str
    target: str
    numbered: tuple[int, ...] | None
    wants_gpu: bool = False

    @property
    def state(self) -> str:
        """Hash of the merged index's content."""
        view = self.snapshot.indexes[self.modality]
        numbered = self.numbered and list(self.numbered)
        return content_hash({**asdict(view), "deleted": self.snapshot.tombstones_sha256, "numbered": numbered})

    def path(self, lists: ListRange) -> str:
        """Path of a range without suffix: .lists for its lists, .npy for their sizes, its record."""
        return f"{self.target}/lists-{self.state}-{lists.start:08d}-{lists.stop:08d}"

    def start(self) -> Callable[[ListRange], None]:
        store = Store(self.memory)
        index = open_lists(store, self.snapshot, self.modality)
        return partial(gather, task=self, out=Store(self.out), read=kept_lists(index, store, self))


ReadList = Callable[[int], tuple[Codes, Ids]]


def kept_lists(index: OpenIndex, store: Store, task: MergeTask) -> ReadList:
    """Make a reader of one list over all parts: codes u8[n, code_size], and ids or numbers i64[n]; no deleted rows."""
    commits = Manifest.read_folded(store).commits
    ordinals = index.ordinals if task.numbered is None else task.numbered
    refuse_uncommitted(ordinals, commits, f"an index of {store.root}")
    kept = DenseIds(
        {ordinal: commits[ordinal].n_written for ordinal in ordinals}, current_tombstones(store, task.snapshot)
    )

    def read(number: int) -> tuple[Codes, Ids]:
        codes, ids = index.read_list(number)
        is_kept = kept.has(ids)
        ids = ids[is_kept]
        return np.ascontiguousarray(codes[is_kept]), ids if task.numbered is None else kept.numbers(ids)

    return read


def gather(lists: ListRange, *, task: MergeTask, out: Store, read: ReadList) -> None:
    """Write the lists of a range back to back, then their sizes, unless the sizes exist."""
    path = task.path(lists)
    if out.exists(f"{path}.npy"):
        return
    sizes = []
    with out.writing(f"{path}.lists") as gathered, gathered.open("wb") as file:
        for number in range(lists.start, lists.stop):
            codes, ids = read(number)
            file.write(codes.tobytes())
            file.write(ids.tobytes())
            sizes.append(len(ids))
    out.put(f"{path}.npy", npy_bytes(np.array(sizes, np.int64)))


def _sizes(out: Store, path: str) -> Ids:
    with out.open(f"{path}.npy") as file:
        sizes: Ids = read_npy(file)
    return sizes
