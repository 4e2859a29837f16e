"""The command that trains a fusion: ``train reco``."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from memory_builder.commands.console import print_embedded, print_table
from memory_builder.commands.options import RunnerOptions
from trainer.loop.config import LoopConfig, OptimizerConfig, Where
from trainer.reco.config import EPOCHS, WEIGHT_DECAY, FusionConfig, NeighbourConfig, Positives

if TYPE_CHECKING:
    from trainer.reco.training_pairs import StoredNeighbours


def _as_published() -> LoopConfig:
    return LoopConfig(epochs=EPOCHS, optimizer=OptimizerConfig(weight_decay=WEIGHT_DECAY))


@dataclass(frozen=True, kw_only=True)
class Reco:
    """Train a fusion that refines a frozen CLIP's embeddings with what a memory returns. Run it again to go on."""

    memory: Annotated[str, Positional, arg(metavar="MEMORY")]
    """Folder of the memory that is asked; both its sides indexed."""
    train: str
    """What is trained on: a memory built with the same model, or pairs to embed, as for embed."""
    out: str
    """Folder of the run: checkpoints, metrics, neighbours, and what evaluate finds."""
    fusion: OmitArgPrefixes[FusionConfig] = field(default_factory=FusionConfig)
    found: OmitArgPrefixes[NeighbourConfig] = field(default_factory=NeighbourConfig)
    clusters: str | None = None
    """Parquet file with columns key and cluster: which pictures are one artwork."""
    positives: Positives = "own"
    """Right answers to a picture: its own caption, or all equal captions."""
    loop: OmitArgPrefixes[LoopConfig] = field(default_factory=_as_published)
    neighbours: str | None = None
    """Where neighbours are kept, for several runs to share; in --out unless given."""
    on: OmitArgPrefixes[Where] = field(default_factory=Where)

    def run(self) -> int:
        from trainer.loop.launch import run_job
        from trainer.reco.job import RecoJob, RecoPlan
        from trainer.reco.training_pairs import neighbours_begun_with

        plan = RecoPlan(
            memory=self.memory,
            train=self.train,
            clusters=self.clusters,
            neighbours=self.found,
            fusion=self.fusion,
            loop=self.loop,
            positives=self.positives,
        )
        if plan.settle(self.out):
            found = neighbours_begun_with(self.out) or self._find()
            print_table("rows found for the training pairs, and dropped", ("what", "rows"), _counted(found.counts))
            run_job(RecoJob(plan=plan, out=self.out, found=found), self.on)
        print(f"run: {self.out}")
        return 0

    def _find(self) -> "StoredNeighbours":
        """Embed the training pairs and look up their neighbours, as far as that is not done."""
        from trainer.reco.training_pairs import embed_training_pairs, find_neighbours

        on = RunnerOptions(runner=self.on.runner, address=self.on.address, cpus_per_worker=self.on.cpus_per_worker)
        runner = on.start()
        train = embed_training_pairs(self.memory, self.train, f"{self.out}/train", runner, print_embedded)
        folder = self.neighbours or f"{self.out}/neighbours"
        return find_neighbours(self.memory, train, folder, self.found, self.clusters, runner)


def _counted(counts: dict[str, int]) -> list[dict[str, object]]:
    return [{"what": name, "rows": f"{n:,}"} for name, n in counts.items()]
