"""The drivers of indexing: ``index`` builds the indexes of a memory, ``adopt`` takes over a published one."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from memory_builder.ann.parts import is_whole
from memory_builder.base.arguments import one_modality, several
from memory_builder.base.runner import LocalRunner, Runner
from memory_builder.base.types import Modality
from memory_builder.catalog.manifest import Manifest
from memory_builder.catalog.snapshots import IndexView, Snapshot
from memory_builder.catalog.update_snapshot import settle
from memory_builder.indexing.adopt import adopt_index
from memory_builder.indexing.build import build_index
from memory_builder.indexing.config import IndexConfig
from memory_builder.storage.store import Store


def present_modalities(store: Store) -> tuple[Modality, ...]:
    """The key modalities a memory has vectors of; both when it has none, so that indexing says so."""
    commits = Manifest.read(store).commits.values()
    there: list[Modality] = []
    if any(commit.n_images for commit in commits):
        there.append("image")
    if any(commit.n_texts for commit in commits):
        there.append("text")
    return tuple(there) or ("image", "text")


def index(
    memory: Store | str,
    *,
    modality: Modality | Sequence[Modality] | None = None,
    max_memory: str | None = None,
    target_recall: float | None = None,
    config: IndexConfig | None = None,
    runner: Runner | None = None,
    keys: Sequence[Modality] | None = None,
) -> Snapshot:
    """Index the committed rows by each modality, tune the search, and make the indexes current, all at once.

    Args:
        memory: its folder, a local path or an fsspec URL.
        modality: image, text or both; those there are, unless given. ``keys`` is its former name.
        max_memory, target_recall: these fields of ``config``, for short.
        config: how to index.
        runner: where the work is done; in this process, unless given.

    Raises:
        IndexBuildError: there is nothing to index, no key fits the budget, or the work failed.
        ConcurrentWriterError: another writer changed the memory's state meanwhile.
    """
    store, runner = Store(memory), runner or LocalRunner()
    config = config or IndexConfig()
    config = replace(
        config,
        max_memory=max_memory or config.max_memory,
        target_recall=config.target_recall if target_recall is None else target_recall,
    )
    store.sweep()
    modalities = several(modality or keys or present_modalities(store))
    return _make_current(store, {one: build_index(store, one, config, runner) for one in modalities})


def adopt(
    memory: Store | str,
    root: str,
    published: Path,
    *,
    modality: Modality | None = None,
    runner: Runner | None = None,
    keys: Modality | None = None,
) -> Snapshot:
    """Make an index that was published with the embeddings of ``root`` the memory's.

    Args:
        memory: the folder that these embeddings were imported into.
        root: the folder they were imported from.
        published: a faiss index, or a folder with ``populated.index`` and ``merged_index.ivfdata``.
        modality: of the vectors it holds; image, unless given. ``keys`` is its former name.
        runner: where its parts are gathered; in this process, unless given.

    Raises:
        UsageError: there is no such index.
        IndexBuildError: it is of a kind that cannot be adopted, or of other rows.
        ConcurrentWriterError: another writer changed the memory's state meanwhile.
    """
    store, modality = Store(memory), one_modality(modality, keys)
    return _make_current(
        store, {modality: adopt_index(store, root, modality, published, runner=runner or LocalRunner())}
    )


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
