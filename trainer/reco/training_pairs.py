"""Preparing RECO's training: embed the pairs with the memory's model, and search their neighbours once."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from memory_builder.base.log import logger
from memory_builder.base.runner import Runner
from memory_builder.base.stage import Stage
from memory_builder.catalog.description import Description, read_description
from memory_builder.catalog.manifest import Manifest
from memory_builder.catalog.trusted_sources import encoder_of
from memory_builder.embedding.driver import EmbedReport, embed
from memory_builder.embedding.retry_rejects import latest_reasons
from memory_builder.embedding.settings import config_of
from memory_builder.errors import ConfigMismatchError, CorruptMemoryError, EncoderError, SourceError
from memory_builder.memory import Memory
from memory_builder.readers.discover import find_sources
from memory_builder.storage.store import Store
from trainer.loop.checkpoint import newest_checkpoint
from trainer.loop.launch import make_absolute
from trainer.loop.run_config import read_run_config, reading_settings
from trainer.reco.config import NeighbourConfig
from trainer.reco.neighbour_table import NeighbourTask, neighbours_hash, read_shard_records


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredNeighbours:
    """The stored neighbours of the training pairs."""

    folder: str
    ordinals: tuple[int, ...]
    """Shards of the training pairs."""
    counts: dict[str, int]
    """Numbers of pairs, of retrieved rows, and of dropped rows by query modality and reason."""

    def __post_init__(self) -> None:
        make_absolute(self, "folder")


def find_neighbours(
    memory: str, train: str, folder: str, config: NeighbourConfig, clusters: str | None, runner: Runner
) -> StoredNeighbours:
    """Search and store the neighbours of every training pair that has none stored.

    Args:
        memory: the memory to search.
        train: the memory that holds the training pairs' embeddings; may be the same.
        folder: parent of the stored neighbours, which get a folder for each state of the memories and each ``config``.
        config: number and filters of the neighbours.
        clusters: parquet file of pair keys and artwork clusters.
        runner: runs the searches.

    Raises:
        EncoderError: the two memories were built with different models.
        SourceError: ``train`` holds no pairs.
        UsageError, CorruptMemoryError: a memory or the clusters cannot be used.
        ConcurrentWriterError: one of them changed meanwhile.
    """
    searched, training = Memory.open(memory), Memory.open(train)
    _check_models(searched.description, training.description, memory, train)
    if not training.commits:
        raise SourceError(f"{train} holds no pairs to train on")
    for modality in {config.lookup.image_search, config.lookup.text_search}:
        searched.snapshot.view(modality, searched.store.root)
    state = neighbours_hash(searched, training, config, clusters)
    folder = f"{folder}/{state}"
    task = NeighbourTask(memory=memory, train=train, folder=folder, config=config, state=state, clusters=clusters)
    Store(folder).sweep()
    counts: Counter[str] = Counter()
    for _, of_shard in Stage(name="neighbours", task=task, runner=runner).results(list(training.commits)):
        counts.update(of_shard)
    return StoredNeighbours(folder=folder, ordinals=tuple(training.commits), counts=dict(counts))


def neighbours_of_run(out: str) -> StoredNeighbours | None:
    """The stored neighbours that a run with a checkpoint was started with; the memories may have changed since.

    None for a run without a checkpoint, or if the stored neighbours are incomplete.
    """
    run = Store(out)
    try:
        record = read_run_config(run)
        if record is None or newest_checkpoint(run) is None:
            return None
        with reading_settings(run):
            folder, counts = str(record["table"]["folder"]), dict(record["table"]["counts"])
    except CorruptMemoryError:  # the settings lead to the same folder
        return None
    records = read_shard_records(Store(folder))
    if sum(records.values(), Counter()) != Counter(counts):
        return None
    logger.info(f"{run.root} resumes with the neighbours that it was started with, in {folder}")
    return StoredNeighbours(folder=folder, ordinals=tuple(records), counts=counts)


def embed_training_pairs(
    memory: str, source: str, out: str, runner: Runner, show: Callable[[EmbedReport], object] = lambda _: None
) -> str:
    """Embed the pairs of ``source`` with the settings of ``memory`` into a new memory; a source that is one is kept.

    Args:
        memory: the memory that RECO searches.
        source: a memory, or pairs as ``memory_builder.embed`` takes them.
        out: folder of the new memory.
        runner: where the shards are embedded.
        show: called with the report of embedding, also if shards failed.

    Returns:
        The folder of the memory that holds the embeddings.

    Raises:
        SourceError, EncoderError: see ``memory_builder.embed``; SourceError also if a shard failed.
        ConfigMismatchError: ``out`` holds embeddings of other pairs, or of another model.
    """
    if Store(source).exists("memory.json"):
        return source
    _refuse_other_pairs(source, out)
    description = read_description(Store(memory))
    encoder = encoder_of(description, memory)
    config = replace(config_of(description), require="both")  # training pairs require picture and caption
    report = embed([source], out, encoder=encoder, config=config, runner=runner)
    show(report)
    if report.failed:
        uri, reason = next(iter(report.failed.items()))
        raise SourceError(f"{len(report.failed)} shards of {source} cannot be embedded, such as {uri}: {reason}")
    left_out = latest_reasons(Manifest.read(Store(out)).commits.values())
    if left_out:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in left_out.most_common())
        logger.info(f"left out of the training pairs: {reasons}")
    return out


def _refuse_other_pairs(source: str, out: str) -> None:
    """Refuse an ``out`` that holds shards other than the current ones of ``source``: all of it is trained on."""
    current = {(shard.uri, shard.etag) for shard in find_sources([source])}
    embedded = ((commit.uri, commit.etag) for commit in Manifest.read(Store(out)).commits.values())
    others = [uri for uri, etag in embedded if (uri, etag) not in current]
    if others:
        raise ConfigMismatchError(
            f"{Store(out).root} holds the pairs of {len(others)} shards that {source} does not hold, or holds changed, "
            f"such as {others[0]}: they would be trained on too. Remove {Store(out).root}, or name another --out"
        )


def _check_models(searched: Description, training: Description, memory: str, train: str) -> None:
    if searched.fingerprint != training.fingerprint:
        raise EncoderError(
            f"{train} was built with {training.model} ({training.fingerprint[:12]}), {memory} with {searched.model} "
            f"({searched.fingerprint[:12]}): embed the training pairs with the memory's model"
        )
