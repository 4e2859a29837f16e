"""``train reco`` as a job: its settings, and the training of each worker on stored neighbours."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from memory_builder.base.runner import Runner, available_threads
from memory_builder.catalog.description import read_description
from memory_builder.catalog.metadata import FIXED_FIELDS
from memory_builder.embedding.driver import EmbedReport
from memory_builder.errors import UsageError
from memory_builder.storage.store import Store
from trainer.loop.checkpoint import is_finished
from trainer.loop.config import LoopConfig, Positives, decisive
from trainer.loop.distributed import world
from trainer.loop.launch import make_absolute
from trainer.loop.loop import Report, make_sampler, train
from trainer.loop.run_config import create_or_compare_config, refuse_other_settings
from trainer.reco.clusters import read_clusters
from trainer.reco.config import LEARNING_RATE, FusionConfig, NeighbourConfig, check_enough
from trainer.reco.fusion import Reco
from trainer.reco.learner import RecoLearner, TableSource
from trainer.reco.neighbour_table import NeighbourTable
from trainer.reco.training_pairs import StoredNeighbours, embed_training_pairs, find_neighbours, neighbours_of_run

KIND = "reco"


@dataclass(frozen=True, kw_only=True, slots=True)
class RecoPlan:
    """Settings of a RECO training; with the stored neighbours they determine the trained parameters."""

    memory: str
    """The memory to search."""
    train: str
    """The training pairs: a memory, or pairs to embed."""
    clusters: str | None = None
    """Parquet file of pair keys and artwork clusters."""
    neighbours: NeighbourConfig = field(default_factory=NeighbourConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    positives: Positives = "own"

    def __post_init__(self) -> None:
        check_enough(self.fusion, self.neighbours)
        make_absolute(self, "memory", "train", "clusters")

    def check_unfinished(self, out: str) -> bool:
        """Refuse settings that do not fit, before hours of embedding; False if the run has taken its last step.

        Raises:
            UsageError: the settings do not fit each other, or the memory, its model or its columns.
            ConfigMismatchError: the folder holds a run with other settings.
        """
        description = read_description(Store(self.memory))
        if not description.fingerprint:
            raise UsageError(
                f"{self.memory} was imported without a model, so RECO cannot encode queries for it: import it "
                "again with --model"
            )
        apart = self.neighbours.apart
        known = {name for name, _ in FIXED_FIELDS} | description.columns.keys()
        if apart is not None and apart not in known:
            raise UsageError(
                f"--apart {apart}: {self.memory} has no such column; its columns: {', '.join(sorted(known))}"
            )
        read_clusters(self.clusters)
        with torch.device("meta"):
            Reco(self.fusion, description.d)
        refuse_other_settings(Store(out), self.record())
        return not is_finished(Store(out))

    def record(self) -> dict[str, Any]:
        """The settings and the frozen model, as ``config.json`` holds them."""
        description = read_description(Store(self.memory))
        return {
            "kind": KIND,
            "encoder": {"model": description.model, "pretrained": description.pretrained},
            "fingerprint": description.fingerprint,
            "d": description.d,
            "fusion": asdict(self.fusion),
            "neighbours": asdict(self.neighbours),
            "positives": self.positives,
            "loop": decisive(self.loop),
            "memory": self.memory,
            "train": self.train,
            "clusters_sha256": None if self.clusters is None else Store(self.clusters).checksum(""),
        }


def prepare_neighbours(
    plan: RecoPlan,
    out: str,
    start_runner: Callable[[], Runner],
    *,
    folder: str | None = None,
    show: Callable[[EmbedReport], object] = lambda _: None,
) -> StoredNeighbours:
    """Return the stored neighbours of the run in ``out``; else embed the training pairs and search their neighbours.

    Args:
        plan: memory, training pairs, and settings of the search.
        out: folder of the run.
        start_runner: starts what runs the work; not called if a run resumes.
        folder: parent of the stored neighbours, which several runs may share (default: in ``out``).
        show: called with the report of embedding.

    Raises:
        MemoryBuilderError: see ``embed_training_pairs`` and ``find_neighbours``.
    """
    stored = neighbours_of_run(out)
    if stored is not None:
        return stored
    runner = start_runner()
    train = embed_training_pairs(plan.memory, plan.train, f"{out}/train", runner, show)
    return find_neighbours(plan.memory, train, folder or f"{out}/neighbours", plan.neighbours, plan.clusters, runner)


@dataclass(frozen=True, kw_only=True, slots=True)
class RecoJob:
    """A ``trainer.loop.launch.Job`` of RECO training."""

    plan: RecoPlan
    out: str
    neighbours: StoredNeighbours

    def __post_init__(self) -> None:
        make_absolute(self, "out")

    def check_unfinished(self) -> bool:
        """Refuse settings that do not fit the run's folder; False if the run has taken its last step.

        Raises:
            ConfigMismatchError: the folder holds a run with other settings.
        """
        run = Store(self.out)
        refuse_other_settings(run, self._record())
        return not is_finished(run)

    def work(self, report: Report) -> None:
        """Train on one worker, in a process group if there are several.

        Raises:
            MemoryBuilderError: see ``trainer.loop.loop.train``.
        """
        torch.set_num_threads(available_threads())  # faiss, in this process, may have set another number
        run, device = Store(self.out), torch.device("cuda" if torch.cuda.is_available() else "cpu")
        table, loop = NeighbourTable(Store(self.neighbours.folder), self.neighbours.ordinals), self.plan.loop
        source = TableSource(table=table, positives=self.plan.positives)
        make_sampler(loop, source.n_pairs)
        record = self._record()
        if world().is_first:
            run.sweep()
            create_or_compare_config(run, record)
        learner = RecoLearner(self.reco(record["d"], device))
        train(learner, source, loop, run, learning_rate=LEARNING_RATE, device=device, report=report)

    def reco(self, d: int, device: torch.device) -> Reco:
        """The fusions of embeddings of width d, initialised alike on every worker."""
        torch.manual_seed(self.plan.loop.seed)
        dtype = torch.float64 if self.plan.loop.precision == "fp64" else torch.float32
        return Reco(self.plan.fusion, d).to(device, dtype)

    def _record(self) -> dict[str, Any]:
        return self.plan.record() | {"table": {"folder": self.neighbours.folder, "counts": self.neighbours.counts}}
