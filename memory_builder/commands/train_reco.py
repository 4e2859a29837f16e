"""``memory-builder train reco``."""

from dataclasses import dataclass, field
from functools import partial
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from memory_builder.commands.console import print_embedded, print_table
from memory_builder.commands.options import start_runner
from trainer.loop.config import LoopConfig, Positives, TrainRunnerConfig
from trainer.reco.config import FusionConfig, NeighbourConfig, published_loop


@dataclass(frozen=True, kw_only=True)
class TrainReco:
    """Train RECO: a fusion of a frozen CLIP's embeddings with neighbours from a memory. Run it again to resume."""

    memory: Annotated[str, Positional, arg(metavar="MEMORY")]
    """Folder of the memory to search, with an image and a text index."""
    train: str
    """Training pairs: a memory built with the same model, or sources as for embed."""
    out: str
    """Folder of the run, for checkpoints, metrics, neighbours and results of evaluate."""
    fusion: OmitArgPrefixes[FusionConfig] = field(default_factory=FusionConfig)
    retrieval: OmitArgPrefixes[NeighbourConfig] = field(default_factory=NeighbourConfig)
    clusters: str | None = None
    """Parquet file with columns key and cluster, where pictures of one artwork share a cluster."""
    positives: Positives = "own"
    """Positives of a picture: its own caption, or all equal captions."""
    training: OmitArgPrefixes[LoopConfig] = field(default_factory=published_loop)
    neighbours: str | None = None
    """Folder of the stored neighbours, which several runs may share (default: in --out)."""
    runner: OmitArgPrefixes[TrainRunnerConfig] = field(default_factory=TrainRunnerConfig)

    def run(self) -> int:
        from trainer.loop.launch import run_job
        from trainer.reco.job import RecoJob, RecoPlan, prepare_neighbours

        plan = RecoPlan(
            memory=self.memory,
            train=self.train,
            clusters=self.clusters,
            neighbours=self.retrieval,
            fusion=self.fusion,
            loop=self.training,
            positives=self.positives,
        )
        if plan.check_unfinished(self.out):
            start = partial(start_runner, self.runner)
            neighbours = prepare_neighbours(plan, self.out, start, folder=self.neighbours, show=print_embedded)
            rows = [{"what": name, "rows": f"{n:,}"} for name, n in neighbours.counts.items()]
            print_table("rows retrieved for the training pairs, and dropped by reason", ("what", "rows"), rows)
            run_job(RecoJob(plan=plan, out=self.out, neighbours=neighbours), self.runner)
        print(f"run: {self.out}")
        return 0
