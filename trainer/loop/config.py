"""What ``memory-builder train`` can be told: settings alone, imported by the command without torch."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from math import inf
from typing import Any, Literal

from memory_builder.errors import UsageError

NO_GROUP = -1
"""The group of a pair that is a right answer to itself alone."""


def check(config: Any, wanted: str, fits: Callable[[Any], bool], *names: str) -> None:
    """Refuse settings that cannot be meant; None is not given. ``fits`` is false for what is no number.

    Raises:
        UsageError: names the flag, its value, and what is wanted.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and not fits(value):
            raise UsageError(f"--{name.replace('_', '-')} {value}: {wanted}")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """As REACT was published, but for the rate, which its mode decides."""

    learning_rate: float | None = None
    """Peak of the learning rate; as published for what is trained unless given."""
    weight_decay: float = 0.1
    """Decoupled decay of matrices; gates, norms, biases and the logit scale have none."""
    beta1: float = 0.9
    """Decay of AdamW's mean of gradients."""
    beta2: float = 0.98
    """Decay of AdamW's mean of squared gradients."""
    eps: float = 1e-6
    """AdamW's epsilon."""
    warmup: float = 0.075
    """Share of all steps in which the rate rises to its peak, before a cosine takes it to zero."""
    max_norm: float | None = None
    """Length that the gradient is cut to; never unless given."""
    ema: float | None = None
    """Decay of a moving average of what learns, kept beside it, such as 0.999."""

    def __post_init__(self) -> None:
        check(self, "more than 0, and finite", lambda value: 0 < value < inf, "learning_rate", "eps", "max_norm")
        check(self, "0 or more, and finite", lambda value: 0 <= value < inf, "weight_decay")
        check(self, "0 or more and less than 1", lambda value: 0 <= value < 1, "beta1", "beta2")
        check(self, "a share of all steps, 0 or more and less than 1", lambda value: 0 <= value < 1, "warmup")
        check(self, "between 0 and 1, such as 0.999", lambda value: 0 < value < 1, "ema")


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """How long, how much at once, and what is kept."""

    epochs: int = 32
    """Times each pair is seen."""
    max_steps: int | None = None
    """Stop after so many steps."""
    batch_size: int = 4096
    """Pairs of a step, over all workers; every pair is told from all others of its batch."""
    micro_batch: int | None = None
    """Pairs a worker embeds at a time, where its share of the batch does not fit into memory."""
    precision: Literal["auto", "fp32", "bf16", "fp64"] = "auto"
    """auto: bf16 autocast on a GPU, fp32 elsewhere. fp64: to compare numbers of workers."""
    seed: int = 0
    """Of order, augmentation and the new parameters."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    keep: int = 2
    """Checkpoints that are kept."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        counts = ("epochs", "max_steps", "micro_batch", "checkpoint_every", "keep", "log_every")
        check(self, "at least 1", lambda value: value >= 1, *counts)
        check(self, "0 or more, and less than 2 to the 63rd", lambda value: 0 <= value < 1 << 63, "seed")


PASSING = ("readers", "checkpoint_every", "keep", "log_every")
"""Settings of data and loop that change nothing of what comes out."""


def decisive(config: Any) -> dict[str, Any]:
    """The settings of a data or loop configuration that a run must be resumed with: all but ``PASSING``."""
    return {name: value for name, value in asdict(config).items() if name not in PASSING}


@dataclass(frozen=True, kw_only=True, slots=True)
class Where:
    """Where the work is done."""

    runner: Literal["local", "ray"] = "local"
    """local: in this process. ray: on the workers of a Ray cluster."""
    address: str | None = None
    """Ray cluster to join; without one that of RAY_ADDRESS, else one is started on this machine."""
    workers: int | None = None
    """Workers on Ray that share each batch; 1 unless given."""
    cpus_per_worker: int | None = None
    """CPUs, and so threads and readers, of each; as many as leave room for all unless given."""
    gpu: bool | None = None
    """Give each worker a GPU; if the cluster has any unless given."""
    max_failures: int = 3
    """Times that workers may die and be started again."""

    def __post_init__(self) -> None:
        ray_only = (self.address, self.workers, self.cpus_per_worker, self.gpu)
        if self.runner == "local" and any(value is not None for value in ray_only):
            raise UsageError("--address, --workers, --cpus-per-worker and --gpu need --runner ray")
        check(self, "at least 1", lambda value: value >= 1, "workers", "cpus_per_worker")
        check(self, "at least 0", lambda value: value >= 0, "max_failures")
