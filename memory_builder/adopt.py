"""Adopt a published faiss IVF index: its codes become parts of ours, row numbers become row ids.

An index published with embeddings (by autofaiss, clip-retrieval, LAION) numbers their rows densely, in the order of
their files: the order in which ``import`` plans them. It is one file, or a folder with ``populated.index`` and
``merged_index.ivfdata``. Its recall is then measured here, like that of an index built here.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from faiss.contrib.factory_tools import reverse_index_factory

from memory_builder.errors import IndexBuildError, UsageError
from memory_builder.indexing import Quantizer, build_record, ids_at
from memory_builder.manifest import Commit, Manifest, config_hash, read_description
from memory_builder.ondisk import LISTS, POPULATED, read_list
from memory_builder.parts import Part, PartRecord, fill, plan_parts, read_part_record, write_faiss
from memory_builder.progress import say
from memory_builder.quantizer import draw_split
from memory_builder.rows import Keys, open_vectors, present_rows, row_ids
from memory_builder.runner import Runner
from memory_builder.snapshots import IndexView
from memory_builder.storage import Store
from memory_builder.tables import npy_bytes
from memory_builder.tuning import tune
from memory_builder.uris import split_uri

PART_ROWS = 16_000_000
"""Rows in a part: each is gathered in a pass over the whole index."""


def adopt_index(
    memory: str, root: str, keys: Keys, published: Path, *, target_recall: float, part_rows: int, runner: Runner
) -> IndexView:
    """Make a published index of all embeddings imported from ``root`` an index of the memory.

    Raises:
        UsageError: there is no such file.
        IndexBuildError: it is no IVF index by inner product, or not one of these rows.
    """
    store = Store(memory)
    description = read_description(store)
    manifest = Manifest.read(store)
    manifest.fold(store)
    base = Store(root).root
    commits = {o: commit for o, commit in manifest.commits.items() if _is_imported(commit, base)}
    index = open_published(published)
    _check(index, published, description.d, sum(commit.n_written for commit in commits.values()))
    checksums = [commit.checksums for commit in commits.values()]
    content = {"published": str(published), "bytes": _bytes(published), "keys": keys, "vectors": checksums}
    folder = f"index/{config_hash(content)}"
    say(f"index {keys}: adopting {published} in {folder}")
    quantizer = _record_quantizer(store, folder, index, published, commits, keys, description.d)
    parts = plan_parts(commits.values(), keys, part_rows)
    task = AdoptTask(
        memory=store.root,
        folder=folder,
        keys=keys,
        published=str(published.absolute()),
        ordinals=tuple(commits),
        quantizer_sha256=quantizer.sha256,
    )
    records = fill(task, parts, runner, f"index {keys}: adopted")
    n_rows = sum(record.n_rows for record in records)
    view = IndexView(index=folder, segments=[[record.name for record in records]], n_rows=n_rows)
    name, tuning = tune(store, view, keys, description.d, commits, target_recall, runner)
    record = build_record(quantizer, records, description, n_rows, keys, tuning)
    store.put(f"{folder}/index.json", json.dumps(record, indent=1).encode())
    return replace(view, tuning=name)


def _is_imported(commit: Commit, base: str) -> bool:
    path, part = split_uri(commit.uri)
    return part.embeddings is not None and path.rstrip("/") == base


def open_published(path: Path) -> Any:
    """The index, its lists left on disk."""
    if path.is_dir():
        missing = [name for name in (POPULATED, LISTS) if not (path / name).exists()]
        if missing:
            raise UsageError(f"{path} lacks {' and '.join(missing)}: name an index file, or a folder with both")
        return _read(path / POPULATED, faiss.IO_FLAG_ONDISK_SAME_DIR)  # with MMAP, searching it would crash
    if not path.exists():
        raise UsageError(f"no index at {path}")
    return _read(path, faiss.IO_FLAG_MMAP)


def _read(path: Path, flags: int) -> Any:
    try:
        return faiss.read_index(str(path), flags)
    except RuntimeError as error:
        raise IndexBuildError(f"{path} cannot be read as a faiss index: {str(error).splitlines()[-1][-200:]}") from None


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in (path.iterdir() if path.is_dir() else [path]))


def _check(index: Any, path: Path, d: int, n_rows: int) -> None:
    if index.d != d or index.ntotal != n_rows:
        raise IndexBuildError(
            f"{path} holds {index.ntotal:,} vectors of width {index.d}, there are {n_rows:,} imported embeddings of "
            f"width {d}: it is an index of something else"
        )
    ivf = faiss.try_extract_index_ivf(index)
    if ivf is None:
        kind = type(faiss.downcast_index(index)).__name__
        raise IndexBuildError(f"{path} is a {kind}, not an IVF index: build one with memory-builder index")
    ivf = faiss.downcast_index(ivf)
    if "FastScan" in type(ivf).__name__:
        kind = type(ivf).__name__
        raise IndexBuildError(f"{path} is a {kind}, whose lists are packed: build one with memory-builder index")
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise IndexBuildError(f"{path} ranks by distance, not by inner product: build one with memory-builder index")


def _record_quantizer(
    store: Store, folder: str, index: Any, path: Path, commits: dict[int, Commit], keys: Keys, d: int
) -> Quantizer:
    """Write the emptied index as the quantizer, held-out rows to measure with, and the record of both."""
    there = store.read_sound_json(f"{folder}/trained.json")
    if there is not None and store.exists(f"{folder}/trained.faiss") and store.exists(f"{folder}/held_out.npy"):
        return Quantizer(**there)
    _, digest = write_faiss(store, f"{folder}/trained.faiss", _emptied(path))
    counts = {ordinal: commit.n_present(keys) for ordinal, commit in commits.items()}
    positions, _ = draw_split(sum(counts.values()), 0, 0)
    held_out = ids_at(store, positions, commits, counts, keys, d)
    store.put(f"{folder}/held_out.npy", npy_bytes(held_out))
    quantizer = Quantizer(
        index_key=_key(index),
        sha256=digest,
        n_train=0,
        n_held_out=len(held_out),
        n_rows=sum(counts.values()),
        seed=0,
        train_threads=0,
    )
    store.put(f"{folder}/trained.json", json.dumps(asdict(quantizer), indent=1).encode())
    return quantizer


def _key(index: Any) -> str:
    """The faiss key, as far as it can be told from an index; for people to read."""
    try:
        return str(reverse_index_factory(index))
    except (AssertionError, NotImplementedError, AttributeError, RuntimeError):
        return type(faiss.downcast_index(index)).__name__


def _emptied(path: Path) -> Any:
    index = open_published(path)
    ivf = faiss.downcast_index(faiss.extract_index_ivf(index))
    lists = faiss.ArrayInvertedLists(ivf.nlist, ivf.code_size)
    ivf.replace_invlists(lists, True)
    lists.this.disown()
    ivf.ntotal = index.ntotal = 0
    return index


@dataclass(frozen=True, kw_only=True, slots=True)
class AdoptTask:
    """A worker that gathers parts out of a published index, which lies on a disk it can reach."""

    memory: str
    folder: str
    keys: Keys
    published: str
    ordinals: tuple[int, ...]
    """Imported shards, in the order in which the index numbers their rows."""
    quantizer_sha256: str
    wants_gpu: bool = False

    def start(self) -> Callable[[Part], PartRecord]:
        store = Store(self.memory)
        commits = Manifest.read_folded(store).commits
        imported = {ordinal: commits[ordinal] for ordinal in self.ordinals}
        return partial(adopt_part, task=self, store=store, commits=imported, d=read_description(store).d)


def adopt_part(part: Part, *, task: AdoptTask, store: Store, commits: dict[int, Commit], d: int) -> PartRecord:
    """Gather the rows of some shards; one that is recorded is left alone. Blank rows are left out."""
    path = f"{task.folder}/parts/{part.name}"
    there = read_part_record(store, task.folder, part.name)
    if there is not None and store.exists(f"{path}.faiss") and store.size(f"{path}.faiss") == there.bytes:
        return there
    ids = _row_ids(part, store, commits, task.keys, d)  # i64[m], -1 where blank
    before = sum(commit.n_written for ordinal, commit in commits.items() if ordinal < part.ordinals[0])
    whole = open_published(Path(task.published))  # its IVF part lives only as long as this does
    published = faiss.downcast_index(faiss.extract_index_ivf(whole))
    index = _read(store.fetch(f"{task.folder}/trained.faiss"), 0)
    ivf = faiss.downcast_index(faiss.extract_index_ivf(index))
    n_rows = 0
    for number in range(ivf.nlist):
        codes, numbers = read_list(published, number)  # u8[n, code_size], i64[n]
        chosen = np.flatnonzero((numbers >= before) & (numbers < before + len(ids)))
        here = ids[numbers[chosen] - before]
        chosen, here = chosen[here >= 0], here[here >= 0]
        if len(here):
            kept = np.ascontiguousarray(codes[chosen])
            ivf.invlists.add_entries(number, len(here), faiss.swig_ptr(here), faiss.swig_ptr(kept))
            n_rows += len(here)
    ivf.ntotal = index.ntotal = n_rows
    size, digest = write_faiss(store, f"{path}.faiss", index)
    record = PartRecord(
        name=part.name,
        ordinals=part.ordinals,
        n_rows=n_rows,
        bytes=size,
        sha256=digest,
        quantizer_sha256=task.quantizer_sha256,
    )
    store.put(f"{path}.json", json.dumps(asdict(record), indent=1).encode())
    return record


def _row_ids(part: Part, store: Store, commits: dict[int, Commit], keys: Keys, d: int) -> Any:
    pieces = []
    for ordinal in part.ordinals:
        ids = np.full(commits[ordinal].n_written, -1, np.int64)
        rows = present_rows(commits[ordinal], open_vectors(store, commits[ordinal], keys, d), keys)
        ids[rows] = row_ids(ordinal, rows)
        pieces.append(ids)
    return np.concatenate(pieces)
