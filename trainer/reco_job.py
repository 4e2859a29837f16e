"""``train reco`` as work to be done: neighbours are looked up once, by whatever runner; then workers train on them."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from memory_builder.build import embed
from memory_builder.describe import EmbedConfig
from memory_builder.encoder import EncoderConfig
from memory_builder.errors import ConfigMismatchError, EncoderError, SourceError
from memory_builder.manifest import Description, Manifest, read_description
from memory_builder.memory import Memory
from memory_builder.progress import Progress
from memory_builder.runner import Runner, available_threads, run_all
from memory_builder.sources import find_sources
from memory_builder.storage import Store
from trainer.checkpoint import is_finished
from trainer.fusion import Reco
from trainer.loop import Report, order_of, train
from trainer.neighbours import NeighbourTable, NeighbourTask, neighbours_hash
from trainer.reco import RecoLearner, TableSource
from trainer.reco_settings import RATE, FusionConfig, NeighbourConfig, Positives, check_enough
from trainer.record import refuse_begun_otherwise, settle_record
from trainer.run import make_absolute
from trainer.settings import LoopConfig, decisive
from trainer.world import world

KIND = "reco"


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


@dataclass(frozen=True, kw_only=True, slots=True)
class RecoJob:
    """A ``trainer.run.Job``."""

    memory: str
    out: str
    found: StoredNeighbours
    neighbours: NeighbourConfig
    fusion: FusionConfig = field(default_factory=FusionConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    positives: Positives = "own"

    def __post_init__(self) -> None:
        check_enough(self.fusion, self.neighbours)
        make_absolute(self, "memory", "out")

    def settle(self) -> bool:
        """Before any worker starts: whether there is anything left to do.

        Raises:
            ConfigMismatchError: the folder holds another run.
        """
        run = Store(self.out)
        refuse_begun_otherwise(run, self._record())
        return not is_finished(run)

    def work(self, report: Report) -> None:
        """Train, as one of the workers of torch.distributed, or alone.

        Raises:
            MemoryBuilderError: see ``trainer.loop.train``.
        """
        torch.set_num_threads(available_threads())  # faiss, in this process, may have set another number
        run, device = Store(self.out), torch.device("cuda" if torch.cuda.is_available() else "cpu")
        source = TableSource(
            table=NeighbourTable(Store(self.found.folder), self.found.ordinals), positives=self.positives
        )
        order_of(self.loop, source.n_pairs)
        if world().is_first:
            run.sweep()
            settle_record(run, self._record())
        learner = RecoLearner(self.reco(device))
        train(learner, source, self.loop, run, learning_rate=RATE, device=device, report=report)

    def reco(self, device: torch.device) -> Reco:
        """The fusions as they are before the first step, the same for every worker."""
        torch.manual_seed(self.loop.seed)
        dtype = torch.float64 if self.loop.precision == "fp64" else torch.float32
        return Reco(self.fusion, read_description(Store(self.memory)).d).to(device, dtype)

    def _record(self) -> dict[str, Any]:
        asked = _asked(self.memory, self.fusion, self.neighbours, self.loop, self.positives)
        return asked | {"table": {"folder": self.found.folder, "counts": self.found.counts}}


def check_settings(
    memory: str, out: str, fusion: FusionConfig, neighbours: NeighbourConfig, loop: LoopConfig, positives: Positives
) -> None:
    """What can be refused before hours of embedding and looking up.

    Raises:
        UsageError: the settings do not go together, or not with the memory's model.
        ConfigMismatchError: the folder holds another run.
    """
    check_enough(fusion, neighbours)
    asked = _asked(memory, fusion, neighbours, loop, positives)
    with torch.device("meta"):
        Reco(fusion, asked["d"])
    refuse_begun_otherwise(Store(out), asked)


def _asked(
    memory: str, fusion: FusionConfig, neighbours: NeighbourConfig, loop: LoopConfig, positives: Positives
) -> dict[str, Any]:
    """The settings that decide what comes out, and of which model."""
    description = read_description(Store(memory))
    return {
        "kind": KIND,
        "encoder": {"model": description.model, "pretrained": description.pretrained},
        "fingerprint": description.fingerprint,
        "d": description.d,
        "fusion": asdict(fusion),
        "neighbours": asdict(neighbours),
        "positives": positives,
        "loop": decisive(loop),
        "memory": Store(memory).root,
    }


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


def embed_training_pairs(memory: str, source: str, out: str, runner: Runner) -> str:
    """The memory that holds the embeddings of ``source``: itself, or one made of it at ``out`` with the memory's model.

    Raises:
        SourceError, EncoderError: see ``memory_builder.build.embed``; SourceError also if a shard failed.
        ConfigMismatchError: what lies at ``out`` was made of something else, or with another model.
    """
    if Store(source).exists("memory.json"):
        return source
    _refuse_other_pairs(source, out)
    description = read_description(Store(memory))
    encoder = EncoderConfig(model=description.model, pretrained=description.pretrained)
    report = embed([source], out, encoder=encoder, config=EmbedConfig(), runner=runner)
    if report.failed:
        uri, reason = next(iter(report.failed.items()))
        raise SourceError(f"{len(report.failed)} shards of {source} cannot be embedded, such as {uri}: {reason}")
    return out


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
