"""``train reco`` as work to be done: what was asked for, and the training of workers on neighbours that were found."""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from memory_builder.base.runner import available_threads
from memory_builder.catalog.description import read_description
from memory_builder.catalog.metadata import FIXED_FIELDS
from memory_builder.errors import UsageError
from memory_builder.storage.store import Store
from trainer.loop.checkpoint import is_finished
from trainer.loop.config import LoopConfig, decisive
from trainer.loop.distributed import world
from trainer.loop.launch import make_absolute
from trainer.loop.loop import Report, order_of, train
from trainer.loop.run_config import refuse_begun_otherwise, settle_record
from trainer.reco.clusters import read_clusters
from trainer.reco.config import RATE, FusionConfig, NeighbourConfig, Positives, check_enough
from trainer.reco.fusion import Reco
from trainer.reco.learner import RecoLearner, TableSource
from trainer.reco.neighbour_table import NeighbourTable
from trainer.reco.training_pairs import StoredNeighbours

KIND = "reco"


@dataclass(frozen=True, kw_only=True, slots=True)
class RecoPlan:
    """What was asked for: with the neighbours that are found, all that decides what comes out."""

    memory: str
    """The memory that is asked."""
    train: str
    """What is trained on: a memory, or pairs."""
    clusters: str | None = None
    """Parquet file of keys and artwork clusters."""
    neighbours: NeighbourConfig = field(default_factory=NeighbourConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    positives: Positives = "own"

    def __post_init__(self) -> None:
        check_enough(self.fusion, self.neighbours)
        make_absolute(self, "memory", "train", "clusters")

    def settle(self, out: str) -> bool:
        """Before hours of embedding and looking up: refuse what cannot be; whether there is anything left to do.

        Raises:
            UsageError: the settings do not go together, or not with the memory, its model or its columns.
            ConfigMismatchError: the folder holds another run.
        """
        description = read_description(Store(self.memory))
        if not description.fingerprint:
            raise UsageError(
                f"{self.memory} was imported without a model, so nothing can be refined with it: import it again "
                "with --model"
            )
        apart = self.neighbours.apart
        known = {name for name, _ in FIXED_FIELDS} | description.columns.keys()
        if apart is not None and apart not in known:
            raise UsageError(f"--apart {apart}: {self.memory} has no such column, only {', '.join(sorted(known))}")
        read_clusters(self.clusters)
        with torch.device("meta"):
            Reco(self.fusion, description.d)
        refuse_begun_otherwise(Store(out), self.record())
        return not is_finished(Store(out))

    def record(self) -> dict[str, Any]:
        """What is written of it, and of which model it is."""
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


@dataclass(frozen=True, kw_only=True, slots=True)
class RecoJob:
    """A ``trainer.loop.launch.Job``."""

    plan: RecoPlan
    out: str
    found: StoredNeighbours

    def __post_init__(self) -> None:
        make_absolute(self, "out")

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
            MemoryBuilderError: see ``trainer.loop.loop.train``.
        """
        torch.set_num_threads(available_threads())  # faiss, in this process, may have set another number
        run, device = Store(self.out), torch.device("cuda" if torch.cuda.is_available() else "cpu")
        table, loop = NeighbourTable(Store(self.found.folder), self.found.ordinals), self.plan.loop
        source = TableSource(table=table, positives=self.plan.positives)
        order_of(loop, source.n_pairs)
        record = self._record()
        if world().is_first:
            run.sweep()
            settle_record(run, record)
        learner = RecoLearner(self.reco(record["d"], device))
        train(learner, source, loop, run, learning_rate=RATE, device=device, report=report)

    def reco(self, d: int, device: torch.device) -> Reco:
        """The fusions of embeddings of that width as they are before the first step, the same for every worker."""
        torch.manual_seed(self.plan.loop.seed)
        dtype = torch.float64 if self.plan.loop.precision == "fp64" else torch.float32
        return Reco(self.plan.fusion, d).to(device, dtype)

    def _record(self) -> dict[str, Any]:
        return self.plan.record() | {"table": {"folder": self.found.folder, "counts": self.found.counts}}
