"""Build one index: draw a sample, train the quantizer, fill the parts, tune and measure, record.

All files are in ``index/<content hash>/``: the hash covers the vectors and the settings of training, so the same rows
and settings resume in the same folder after a kill.
"""

from dataclasses import asdict

from memory_builder.ann.parts import FillTask, fill, plan_parts
from memory_builder.ann.quantizer import choose_key
from memory_builder.base.log import logger
from memory_builder.base.runner import Runner, run_one
from memory_builder.base.types import Modality
from memory_builder.catalog.commits import Commit
from memory_builder.catalog.description import Description, read_description
from memory_builder.catalog.manifest import Manifest
from memory_builder.catalog.paths import vectors_path
from memory_builder.catalog.rows import Rows
from memory_builder.catalog.snapshots import IndexView, Snapshot, read_snapshot
from memory_builder.catalog.tombstones import current_tombstones
from memory_builder.errors import IndexBuildError
from memory_builder.indexing.auto_key import Trial, TrialTask, choose_by_trials
from memory_builder.indexing.config import AUTO, IndexConfig
from memory_builder.indexing.finish import deletions, finish_index
from memory_builder.indexing.train import TrainTask
from memory_builder.storage.records import content_hash
from memory_builder.storage.store import Store


def build_index(memory: Store | str, modality: Modality, config: IndexConfig, runner: Runner) -> IndexView:
    """Build, or finish building, the index of one modality over all committed rows that are not deleted now.

    Raises:
        IndexBuildError: the memory has no vectors of this modality, no key fits, or a part failed.
    """
    store = Store(memory)
    description = read_description(store)
    manifest = Manifest.read(store)
    manifest.fold(store)
    commits, state = manifest.commits, read_snapshot(store)
    n_rows = Rows(store, commits, description.d, current_tombstones(store, state)).n_present(modality)
    if not n_rows:
        raise IndexBuildError(
            f"{store.root} has no {modality} vectors to index: embed pairs that have the {modality} side, or index the "
            f"other one (--modality {'text' if modality == 'image' else 'image'})"
        )
    key, trials = _choose(store, modality, config, description, commits, n_rows, runner, state)
    folder = f"index/{_content_hash(description, commits, modality, key, config, state)}"
    logger.info(f"index {modality}: {key} over {n_rows:,} rows in {folder}")
    train = TrainTask(
        memory=store,
        folder=folder,
        modality=modality,
        ordinals=tuple(commits),
        train_points_per_list=config.train_points_per_list,
        train_threads=config.train_threads,
        seed=config.seed,
        deleted_as_of=state,
        device=config.device,
    )
    quantizer = run_one(runner, train, key)
    parts = plan_parts(commits.values(), modality, config.part_rows)
    task = FillTask(
        memory=store,
        folder=folder,
        modality=modality,
        quantizer_sha256=quantizer.sha256,
        deleted_as_of=state,
        device=config.device,
    )
    records = fill(task, parts, runner, f"index {modality}: filled")
    return finish_index(
        store,
        modality,
        description,
        commits,
        quantizer,
        folder,
        records,
        config.target_recall,
        runner,
        state,
        [asdict(trial) for trial in trials],
    )


def _choose(
    store: Store,
    modality: Modality,
    config: IndexConfig,
    description: Description,
    commits: dict[int, Commit],
    n_rows: int,
    runner: Runner,
    state: Snapshot,
) -> tuple[str, list[Trial]]:
    """(index key to build, trials that led to it)."""
    if config.index_key != AUTO:
        return config.index_key or choose_key(n_rows, description.d, config.max_memory), []
    content = {
        "content": _content_hash(description, commits, modality, AUTO, config, state),
        "max_memory": config.max_memory,
        "target_recall": config.target_recall,
    }
    task = TrialTask(
        memory=store,
        folder=f"index/{content_hash(content)}",
        modality=modality,
        ordinals=tuple(commits),
        target_recall=config.target_recall,
        train_threads=config.train_threads,
        seed=config.seed,
        device=config.device,
        deleted_as_of=state,
    )
    return choose_by_trials(task, n_rows, description.d, config.max_memory, runner)


def _content_hash(
    description: Description,
    commits: dict[int, Commit],
    modality: Modality,
    key: str,
    config: IndexConfig,
    state: Snapshot,
) -> str:
    vectors = {str(o): commit.checksums[vectors_path(o, modality)] for o, commit in commits.items()}
    device = {} if config.device == "auto" else {"device": config.device}
    return content_hash(
        {
            "keys": modality,
            "index_key": key,
            "fingerprint": description.fingerprint,
            "vectors": vectors,
            "train_points_per_list": config.train_points_per_list,
            "part_rows": config.part_rows,
            "train_threads": config.train_threads,
            "seed": config.seed,
            **device,
            **deletions(state),
        }
    )
