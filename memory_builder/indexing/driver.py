"""The drivers of indexing: ``index`` builds the indexes of a memory, ``adopt`` takes over a published one."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from memory_builder.ann.parts import is_whole
from memory_builder.base.runner import Runner
from memory_builder.base.types import Modality
from memory_builder.catalog.manifest import Manifest
from memory_builder.catalog.snapshots import IndexView, Snapshot
from memory_builder.catalog.update_snapshot import settle
from memory_builder.indexing.adopt import adopt_index
from memory_builder.indexing.build import build_index
from memory_builder.indexing.config import IndexConfig
from memory_builder.storage.store import Store


def present_keys(store: Store) -> tuple[Modality, ...]:
    """The key modalities a memory has vectors of; both when it has none, so that indexing says so."""
    commits = Manifest.read(store).commits.values()
    there: list[Modality] = []
    if any(commit.n_images for commit in commits):
        there.append("image")
    if any(commit.n_texts for commit in commits):
        there.append("text")
    return tuple(there) or ("image", "text")


def index(memory: Store | str, *, keys: Sequence[Modality], config: IndexConfig, runner: Runner) -> Snapshot:
    """Index the committed rows by each key modality and make the indexes current, all at once.

    Raises:
        IndexBuildError: there is nothing to index, no key fits the budget, or the work failed.
        ConcurrentWriterError: another writer changed the memory's state meanwhile.
    """
    store = Store(memory)
    store.sweep()
    return _make_current(store, {modality: build_index(memory, modality, config, runner) for modality in keys})


def adopt(memory: Store | str, root: str, published: Path, *, keys: Modality, runner: Runner) -> Snapshot:
    """Make an index that was published with the embeddings of ``root`` the memory's.

    Raises:
        UsageError: there is no such index.
        IndexBuildError: it is of a kind that cannot be adopted, or of other rows.
        ConcurrentWriterError: another writer changed the memory's state meanwhile.
    """
    store = Store(memory)
    view = adopt_index(memory, root, keys, published, runner=runner)
    return _make_current(store, {keys: view})


def _make_current(store: Store, views: Mapping[str, IndexView]) -> Snapshot:
    """Write the state with these indexes in the place of those there were."""
    version = Manifest.read_folded(store).version

    def replaced(before: Snapshot) -> Snapshot:
        indexes = dict(before.indexes)
        for keys, view in views.items():
            there = indexes.get(keys)
            # compacted since it was built: the same rows, without the deleted ones
            is_same = there is not None and there.index == view.index and is_whole(store, there)
            indexes[keys] = replace(there, tuning=view.tuning) if there is not None and is_same else view
        if indexes == before.indexes:
            return before
        return replace(before, number=before.number + 1, manifest_version=version, indexes=indexes)

    return settle(store, replaced)
