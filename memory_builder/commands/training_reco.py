"""The command that trains a fusion: ``train reco``."""

from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from memory_builder.commands.running import RunnerOptions
from memory_builder.console import print_table
from trainer.reco_settings import EPOCHS, WEIGHT_DECAY, FusionConfig, NeighbourConfig, Positives
from trainer.settings import LoopConfig, OptimizerConfig, Where


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
        from trainer.reco_job import RecoJob, check_settings, embed_training_pairs, find_neighbours
        from trainer.run import run_job

        check_settings(self.memory, self.out, self.fusion, self.found, self.loop, self.positives)
        where = RunnerOptions(
            runner=self.on.runner, address=self.on.address, cpus_per_worker=self.on.cpus_per_worker
        ).start()
        train = embed_training_pairs(self.memory, self.train, f"{self.out}/train", where)
        folder = self.neighbours or f"{self.out}/neighbours"
        found = find_neighbours(self.memory, train, folder, self.found, self.clusters, where)
        print_table("rows found for the training pairs, and dropped", ("what", "rows"), _counted(found.counts))
        job = RecoJob(
            memory=self.memory,
            out=self.out,
            found=found,
            neighbours=self.found,
            fusion=self.fusion,
            loop=self.loop,
            positives=self.positives,
        )
        run_job(job, self.on)
        print(f"run: {self.out}")
        return 0


def _counted(counts: dict[str, int]) -> list[dict[str, object]]:
    return [{"what": name, "rows": f"{n:,}"} for name, n in counts.items()]
