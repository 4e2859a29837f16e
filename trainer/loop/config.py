"""Settings that every training shares. Imports no torch, so that the command starts at once."""

from dataclasses import asdict, dataclass, field
from math import inf
from typing import Any, Literal

from memory_builder.base.arguments import check
from memory_builder.base.runner import RunnerConfig

Positives = Literal["own", "caption"]
"""Positives of a picture: its own caption, or all equal captions."""
NO_GROUP = -1
"""Group of a pair whose only positive is itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """AdamW as REACT was published; the learning rate depends on what is trained."""

    learning_rate: float | None = None
    """Peak learning rate (default: the published one of the chosen training)."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices. Gates, norms, biases and the logit scale have none."""
    beta1: float = 0.9
    """AdamW's decay of the gradients' mean."""
    beta2: float = 0.98
    """AdamW's decay of the squared gradients' mean."""
    eps: float = 1e-6
    """AdamW's epsilon."""
    warmup: float = 0.075
    """Fraction of all steps with linear warm-up; a cosine to zero follows."""
    max_norm: float | None = None
    """Gradient norm to clip to (default: no clipping)."""
    ema: float | None = None
    """Also keep a moving average of the trained parameters, with this decay, such as 0.999."""

    def __post_init__(self) -> None:
        check(self, "more than 0, and finite", lambda value: 0 < value < inf, "learning_rate", "eps", "max_norm")
        check(self, "0 or more, and finite", lambda value: 0 <= value < inf, "weight_decay")
        check(self, "0 or more and less than 1", lambda value: 0 <= value < 1, "beta1", "beta2")
        check(self, "a fraction of all steps, 0 or more and less than 1", lambda value: 0 <= value < 1, "warmup")
        check(self, "between 0 and 1, such as 0.999", lambda value: 0 < value < 1, "ema")


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """Length, batch size, precision and checkpoints of a training."""

    epochs: int = 32
    """Passes over all pairs."""
    max_steps: int | None = None
    """Stop after this number of steps."""
    batch_size: int = 4096
    """Global batch size, over all workers. All other pairs of the batch are negatives."""
    micro_batch: int | None = None
    """Pairs embedded at a time on each worker (GradCache), where its part of the batch does not fit into memory."""
    precision: Literal["auto", "fp32", "bf16", "fp64"] = "auto"
    """auto: bf16 autocast on a GPU, fp32 elsewhere. fp64: to compare numbers of workers."""
    seed: int = 0
    """Seed of sampling, augmentation and new parameters."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    keep: int = 2
    """Number of newest checkpoints to keep."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        counts = ("epochs", "max_steps", "micro_batch", "checkpoint_every", "keep", "log_every")
        check(self, "at least 1", lambda value: value >= 1, *counts)
        check(self, "0 or more, and less than 2 to the 63rd", lambda value: 0 <= value < 1 << 63, "seed")


WITHOUT_EFFECT = ("readers", "checkpoint_every", "keep", "log_every")
"""Settings of data and loop that do not change the trained parameters."""


def decisive(config: Any) -> dict[str, Any]:
    """The settings of a data or loop configuration that a resumed run must share: all but ``WITHOUT_EFFECT``."""
    return {name: value for name, value in asdict(config).items() if name not in WITHOUT_EFFECT}


@dataclass(frozen=True, kw_only=True)
class TrainRunnerConfig(RunnerConfig):
    """Train in this process or on a Ray cluster."""

    workers: int | None = None
    """Ray workers that share each batch (default: 1)."""
    gpu: bool | None = None
    """Give each Ray worker a GPU (default: if the cluster has any)."""
    max_failures: int = 3
    """Worker failures after which the training fails; until then workers restart from the last checkpoint."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "at least 1", lambda value: value >= 1, "workers")
        check(self, "at least 0", lambda value: value >= 0, "max_failures")
