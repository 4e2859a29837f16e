"""Entry points of indexing: ``index`` builds the indexes of a memory, ``adopt`` adds a published one."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from memory_builder.ann.parts import is_whole
from memory_builder.base.arguments import one_modality, several
from memory_builder.base.runner import LocalRunner, Runner
from memory_builder.base.types import MODALITIES, Modality
from memory_builder.catalog.manifest import Manifest
from memory_builder.catalog.snapshots import IndexView, Snapshot
from memory_builder.catalog.update_snapshot import update_snapshot
from memory_builder.indexing.adopt import adopt_index
from memory_builder.indexing.build import build_index
from memory_builder.indexing.config import IndexConfig
from memory_builder.storage.store import Store


def present_modalities(store: Store) -> tuple[Modality, ...]:
    """Modalities that a memory has vectors of; both for an empty one, so that indexing raises the error."""
    commits = Manifest.read(store).commits.values()
    present: list[Modality] = []
    if any(commit.n_images for commit in commits):
        present.append("image")
    if any(commit.n_texts for commit in commits):
        present.append("text")
    return tuple(present) or MODALITIES


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
    """Index the committed rows by each modality, tune the search parameters, and make all indexes current at once.

    Args:
        memory: folder of the memory, a local path or an fsspec URL.
        modality: image, text or both (default: all that the memory has). ``keys`` is its former name.
        max_memory, target_recall: shortcuts for these fields of ``config``.
        config: settings of the index.
        runner: runs the work (default: in this process).

    Raises:
        IndexBuildError: a modality has no vectors, no key fits the budget, or the work failed.
        ConcurrentWriterError: another writer changed the snapshot meanwhile.
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
    """Make a published index of the embeddings of ``root`` the memory's index.

    Args:
        memory: the folder that these embeddings were imported into.
        root: the folder they were imported from.
        published: a faiss index, or a folder with ``populated.index`` and ``merged_index.ivfdata``.
        modality: modality of its vectors (default: image). ``keys`` is its former name.
        runner: copies its parts (default: in this process).

    Raises:
        UsageError: the index does not exist.
        IndexBuildError: the index has an unsupported type, or other rows.
        ConcurrentWriterError: another writer changed the snapshot meanwhile.
    """
    store, modality = Store(memory), one_modality(modality, keys)
    return _make_current(
        store, {modality: adopt_index(store, root, modality, published, runner=runner or LocalRunner())}
    )


def _make_current(store: Store, views: Mapping[str, IndexView]) -> Snapshot:
    """Write a snapshot in which these indexes replace the previous ones."""
    version = Manifest.read_folded(store).version

    def replaced(before: Snapshot) -> Snapshot:
        indexes = dict(before.indexes)
        for modality, view in views.items():
            current = indexes.get(modality)
            # compacted since it was built: the same rows, without the deleted ones
            is_same = current is not None and current.index == view.index and is_whole(store, current)
            indexes[modality] = replace(current, tuning=view.tuning) if current is not None and is_same else view
        if indexes == before.indexes:
            return before
        return replace(before, number=before.number + 1, manifest_version=version, indexes=indexes)

    return update_snapshot(store, replaced)
