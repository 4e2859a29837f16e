"""Adopt a published faiss IVF index: its inverted lists become parts, its row numbers row ids.

An index published with embeddings (by autofaiss, clip-retrieval, LAION) numbers their rows densely, in the order of
their file names. It is one file, or a folder with ``populated.index`` and ``merged_index.ivfdata``. Its codes are
compared with the vectors of the rows, and its recall is measured as for an index built here.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
from faiss.contrib.factory_tools import reverse_index_factory

from memory_builder.ann.faiss_checks import index_problem
from memory_builder.ann.inverted_lists import LISTS, POPULATED, Codes, end_of_lists, read_list, with_lists_in_memory
from memory_builder.ann.parts import Part, PartRecord, fill, finished_part, open_trained, plan_parts, record_part
from memory_builder.ann.quantizer import draw_split
from memory_builder.base.log import logger
from memory_builder.base.runner import Runner
from memory_builder.base.types import Ids, Modality, rows_of
from memory_builder.catalog.commits import Commit
from memory_builder.catalog.description import read_description
from memory_builder.catalog.manifest import Manifest
from memory_builder.catalog.rows import Rows, open_vectors, present_rows
from memory_builder.catalog.snapshots import IndexView, Snapshot, read_snapshot
from memory_builder.catalog.tombstones import current_tombstones
from memory_builder.errors import IndexBuildError, UsageError
from memory_builder.indexing.config import TARGET_RECALL
from memory_builder.indexing.finish import deletions, finish_index
from memory_builder.indexing.published_numbering import Numbering, check_pairing, ids_of_part
from memory_builder.indexing.train import Quantizer, read_trained, record_quantizer
from memory_builder.readers.shard_uri import split_uri
from memory_builder.storage.records import content_hash
from memory_builder.storage.store import Store

PART_ROWS = 16_000_000
"""Rows in a part; each part takes a pass over the whole index."""


def adopt_index(memory: Store | str, root: str, modality: Modality, published: Path, *, runner: Runner) -> IndexView:
    """Add a published index of all embeddings imported from ``root`` to the memory, without deleted rows.

    Raises:
        UsageError: the index file does not exist.
        IndexBuildError: the index is not IVF with inner product, or of other rows.
    """
    store = Store(memory)
    description = read_description(store)
    manifest = Manifest.read(store)
    manifest.fold(store)
    base = Store(root).root
    numbering = Numbering.of([commit for commit in manifest.commits.values() if _is_imported(commit, base)])
    commits = {ordinal: manifest.commits[ordinal] for ordinal in sorted(numbering.ordinals)}
    state = read_snapshot(store)
    index = open_published(published)
    _check(index, published, description.d, numbering.n_rows)
    checksums = [commit.checksums for commit in commits.values()]
    content = {"published": str(published), "bytes": _bytes(published), "keys": modality, "vectors": checksums}
    content |= deletions(state)
    folder = f"index/{content_hash(content)}"
    logger.info(f"index {modality}: adopting {published} in {folder}")
    rows = Rows(store, commits, description.d, current_tombstones(store, state))
    check_pairing(index, numbering, rows, modality, str(published))
    quantizer = read_trained(store, folder) or _empty(folder, index, rows, modality)
    parts = plan_parts(commits.values(), modality, PART_ROWS)
    task = AdoptTask(
        memory=store,
        folder=folder,
        modality=modality,
        published=str(published.absolute()),
        numbering=numbering,
        quantizer_sha256=quantizer.sha256,
        deleted_as_of=state,
    )
    records = fill(task, parts, runner, f"index {modality}: adopted")
    return finish_index(store, modality, description, commits, quantizer, folder, records, TARGET_RECALL, runner, state)


def _is_imported(commit: Commit, base: str) -> bool:
    path, part = split_uri(commit.uri)
    return part.is_published and path.rstrip("/") == base


def open_published(path: Path) -> Any:
    """Open the index with its lists left on disk."""
    if path.is_dir():
        missing = [name for name in (POPULATED, LISTS) if not (path / name).exists()]
        if missing:
            raise UsageError(f"{path} lacks {' and '.join(missing)}: name an index file, or a folder with both")
        # with MMAP, searching it would crash
        return _read(path / POPULATED, faiss.IO_FLAG_ONDISK_SAME_DIR, path / LISTS)
    if not path.exists():
        raise UsageError(f"no index at {path}")
    return _read(path, faiss.IO_FLAG_MMAP, path)


def _read(path: Path, flags: int, lists: Path) -> Any:
    try:
        index = faiss.read_index(str(path), flags)
        problem = None if _is_packed(index) else index_problem(index)
    except (RuntimeError, MemoryError, ValueError, OverflowError) as error:
        problem = (str(error).strip().splitlines() or [type(error).__name__])[-1][-200:]
    if problem is not None:
        raise IndexBuildError(f"{path} cannot be read as a faiss index: {problem}")
    ivf = faiss.try_extract_index_ivf(index)
    reach = 0 if ivf is None else end_of_lists(faiss.downcast_index(ivf))
    if lists.stat().st_size < reach:
        raise IndexBuildError(
            f"{lists} has {lists.stat().st_size:,} bytes, the lists of {path.name} reach to byte {reach:,}: the files "
            "do not belong together, or it was cut off"
        )
    return index


def _is_packed(index: Any) -> bool:
    """Whether the lists have FastScan's packed layout, from which codes cannot be copied."""
    ivf = faiss.try_extract_index_ivf(index)
    return ivf is not None and "FastScan" in type(faiss.downcast_index(ivf)).__name__


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in (path.iterdir() if path.is_dir() else [path]))


def _check(index: Any, path: Path, d: int, n_rows: int) -> None:
    if index.d != d or index.ntotal != n_rows:
        raise IndexBuildError(
            f"{path} holds {index.ntotal:,} vectors of width {index.d}, the memory {n_rows:,} imported embeddings of "
            f"width {d}: the index is of other embeddings"
        )
    ivf = faiss.try_extract_index_ivf(index)
    if ivf is None:
        kind = type(faiss.downcast_index(index)).__name__
        raise IndexBuildError(f"{path} is a {kind}, not an IVF index: build one with memory-builder index")
    ivf = faiss.downcast_index(ivf)
    if _is_packed(index):
        kind = type(ivf).__name__
        raise IndexBuildError(f"{path} is a {kind}, whose lists are packed: build one with memory-builder index")
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise IndexBuildError(f"{path} ranks by distance, not by inner product: build one with memory-builder index")


def _empty(folder: str, index: Any, rows: Rows, modality: Modality) -> Quantizer:
    """Remove the rows from the index, and record it as the quantizer with held-out rows to measure with."""
    key = _key(index)
    ivf = faiss.downcast_index(faiss.extract_index_ivf(index))
    lists = faiss.ArrayInvertedLists(ivf.nlist, ivf.code_size)
    ivf.replace_invlists(lists, True)
    lists.this.disown()  # the index owns them now
    ivf.ntotal = index.ntotal = 0
    n_rows = rows.n_present(modality)
    positions, _ = draw_split(n_rows, 0, 0)
    held_out = rows.ids_at(positions, modality)
    return record_quantizer(
        rows.store, folder, index, held_out, index_key=key, n_train=0, n_rows=n_rows, seed=0, train_threads=0
    )


def _key(index: Any) -> str:
    """The faiss index key, as far as faiss can derive it; for display."""
    try:
        return str(reverse_index_factory(index))
    except (AssertionError, NotImplementedError, AttributeError, RuntimeError):
        return type(faiss.downcast_index(index)).__name__


@dataclass(frozen=True, kw_only=True, slots=True)
class AdoptTask:
    """Worker that copies parts out of a published index, on a disk within its reach."""

    memory: Store | str
    folder: str
    modality: Modality
    published: str
    numbering: Numbering
    quantizer_sha256: str
    deleted_as_of: Snapshot
    """Snapshot whose deleted rows are left out."""
    wants_gpu: bool = False

    def start(self) -> Callable[[Part], PartRecord]:
        store = Store(self.memory)
        commits = Manifest.read_folded(store).commits
        imported = {ordinal: commits[ordinal] for ordinal in self.numbering.ordinals}
        deleted = current_tombstones(store, self.deleted_as_of)
        d = read_description(store).d
        return partial(adopt_part, task=self, store=store, commits=imported, d=d, deleted=deleted)


def adopt_part(
    part: Part, *, task: AdoptTask, store: Store, commits: dict[int, Commit], d: int, deleted: Ids
) -> PartRecord:
    """Copy the rows of some shards, unless the part is recorded; blank and deleted rows are left out."""
    finished = finished_part(store, task.folder, part, task.quantizer_sha256)
    if finished is not None:
        return finished
    is_held = {o: _is_held(commits[o], store, task.modality, d, deleted) for o in part.ordinals}
    whole = open_published(Path(task.published))  # its IVF part lives only as long as this does
    published = faiss.downcast_index(faiss.extract_index_ivf(whole))

    def copied_lists() -> Iterator[tuple[Codes, Ids]]:
        for number in range(published.nlist):
            codes, numbers = read_list(published, number)
            ids = ids_of_part(task.numbering, numbers, is_held)
            yield np.ascontiguousarray(codes[ids >= 0]), ids[ids >= 0]

    filled = with_lists_in_memory(open_trained(store, task.folder), copied_lists())
    n_deleted = sum(len(rows_of(ordinal, deleted)) for ordinal in part.ordinals)
    return record_part(store, task.folder, part, filled, task.quantizer_sha256, n_deleted=n_deleted)


def _is_held(commit: Commit, store: Store, modality: Modality, d: int, deleted: Ids) -> npt.NDArray[np.bool_]:
    """bool[n] rows of a shard that have this modality and are not deleted."""
    is_held = np.zeros(commit.n_written, np.bool_)
    is_held[present_rows(commit, open_vectors(store, commit, modality, d), modality, deleted)] = True
    return is_held
