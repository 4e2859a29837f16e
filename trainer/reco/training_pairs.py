"""What RECO trains on: pairs embedded with the memory's model, and the neighbours that each finds, looked up once."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields

from memory_builder.base.progress import Progress, say
from memory_builder.base.runner import Runner, run_all
from memory_builder.catalog.description import Description, read_description
from memory_builder.catalog.manifest import Manifest
from memory_builder.catalog.trusted import encoder_of
from memory_builder.embedding.config import EmbedConfig
from memory_builder.embedding.driver import EmbedReport, embed
from memory_builder.embedding.retry_rejects import standing_reasons
from memory_builder.errors import ConfigMismatchError, CorruptMemoryError, EncoderError, SourceError
from memory_builder.memory import Memory
from memory_builder.readers.discover import find_sources
from memory_builder.storage.store import Store
from trainer.loop.checkpoint import last_state
from trainer.loop.launch import make_absolute
from trainer.loop.run_config import read_record, reading_settings
from trainer.reco.config import NeighbourConfig
from trainer.reco.neighbour_table import NeighbourTask, neighbours_hash, read_records


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredNeighbours:
    """Where the neighbours of the training pairs lie."""

    folder: str
    ordinals: tuple[int, ...]
    """Shards of the training pairs."""
    counts: dict[str, int]
    """Pairs, rows found, and rows dropped by side and reason."""

    def __post_init__(self) -> None:
        make_absolute(self, "folder")


def find_neighbours(
    memory: str, train: str, folder: str, config: NeighbourConfig, clusters: str | None, runner: Runner
) -> StoredNeighbours:
    """Look up the neighbours of every training pair that has not been looked up yet.

    Args:
        memory: the memory that is asked.
        train: the memory that holds the training pairs' embeddings; may be the same.
        folder: where what is found is kept, in a folder for each state of both memories and each configuration.
        config: which neighbours.
        clusters: parquet file of keys and artwork clusters.
        runner: where it is done.

    Raises:
        EncoderError: the two memories were built with different models.
        SourceError: there are no training pairs.
        UsageError, CorruptMemoryError: a memory or the clusters cannot be used.
        ConcurrentWriterError: one of them was changed meanwhile.
    """
    asked, learnt = Memory.open(memory), Memory.open(train)
    _check_models(asked.description, learnt.description, memory, train)
    if not learnt.commits:
        raise SourceError(f"{train} holds no pairs to train on")
    for side in {config.lookup.image_search, config.lookup.text_search}:
        asked.snapshot.view(side, asked.store.root)
    state = neighbours_hash(asked, learnt, config, clusters)
    place = f"{folder}/{state}"
    task = NeighbourTask(memory=memory, train=train, folder=place, config=config, state=state, clusters=clusters)
    Store(place).sweep()
    progress = Progress("neighbours", n_planned=len(learnt.commits), n_done=0)
    counts: Counter[str] = Counter()
    for _, some in run_all(runner, task, list(learnt.commits)):
        counts.update(some)
        progress.advance(n_pairs=some["pairs"])
    return StoredNeighbours(folder=place, ordinals=tuple(learnt.commits), counts=dict(counts))


def neighbours_begun_with(out: str) -> StoredNeighbours | None:
    """What a run that has a checkpoint trains on, while it is stored: memories may have changed since.

    None for a run without a checkpoint, or if something of it is not there any more.
    """
    run = Store(out)
    try:
        record = read_record(run)
        if record is None or last_state(run) is None:
            return None
        with reading_settings(run):
            folder, counts = str(record["table"]["folder"]), dict(record["table"]["counts"])
    except CorruptMemoryError:  # they are found again by their settings
        return None
    records = read_records(Store(folder))
    if sum(records.values(), Counter()) != Counter(counts):
        return None
    say(f"{run.root} goes on with the neighbours that it began with, in {folder}")
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
        ConfigMismatchError: what lies at ``out`` was made of something else, or with another model.
    """
    if Store(source).exists("memory.json"):
        return source
    _refuse_other_pairs(source, out)
    description = read_description(Store(memory))
    encoder = encoder_of(description, memory)
    report = embed([source], out, encoder=encoder, config=_embedded_as(description), runner=runner)
    show(report)
    if report.failed:
        uri, reason = next(iter(report.failed.items()))
        raise SourceError(f"{len(report.failed)} shards of {source} cannot be embedded, such as {uri}: {reason}")
    left_out = standing_reasons(Manifest.read(Store(out)).commits.values())
    if left_out:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in left_out.most_common())
        say(f"left out of the training pairs: {reasons}")
    return out


def _embedded_as(description: Description) -> EmbedConfig:
    """The memory's own settings, as far as it was embedded; a training pair has both sides."""
    told = {name: value for name, value in description.config.items() if name in {f.name for f in fields(EmbedConfig)}}
    return EmbedConfig(**told | {"columns": tuple(told["columns"]), "require": "both"})


def _refuse_other_pairs(source: str, out: str) -> None:
    """All that lies at ``out`` is trained on, so it must be of this source as it is now."""
    asked = {(found.uri, found.etag) for found in find_sources([source])}
    held = ((commit.uri, commit.etag) for commit in Manifest.read(Store(out)).commits.values())
    others = [uri for uri, etag in held if (uri, etag) not in asked]
    if others:
        raise ConfigMismatchError(
            f"{Store(out).root} holds the pairs of {len(others)} shards that are not, or no longer so, in {source}, "
            f"such as {others[0]}: they would be trained on too. Remove {Store(out).root}, or name another --out"
        )


def _check_models(asked: Description, learnt: Description, memory: str, train: str) -> None:
    if asked.fingerprint != learnt.fingerprint:
        raise EncoderError(
            f"{train} was built with {learnt.model} ({learnt.fingerprint[:12]}), {memory} with {asked.model} "
            f"({asked.fingerprint[:12]}): embed the training pairs with the memory's model"
        )
