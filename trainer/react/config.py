"""Settings of ``memory-builder train react``. Imports no torch, so that the command starts at once."""

from dataclasses import dataclass, field
from math import inf
from typing import Literal

from memory_builder.errors import UsageError
from trainer.loop.config import check

Augmentation = Literal["react", "none"]


Branches = Literal["both", "attention", "mlp"]


Mode = Literal["gated-image", "locked-text", "locked-image", "full"]


Positives = Literal["own", "caption", "class"]


GATED_RATE = 5e-4


TOWER_RATE = 5e-5
"""Learning rates as REACT published them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GatedConfig:
    """Which blocks of an image tower get a gated block, and of what size."""

    last_k: int = 6
    """The last blocks of the image tower that get one each; 0: all."""
    branches: Branches = "both"
    """What a gated block consists of."""
    bottleneck: int | None = None
    """Width of its attention, with as many heads as fit, the MLP smaller as much; that of the tower unless given."""
    mlp_ratio: float | None = None
    """Width of its MLP, in widths of the tower; as in the tower's own blocks if not given."""

    def __post_init__(self) -> None:
        check(self, "a number of blocks, or 0 for all", lambda value: value >= 0, "last_k")
        check(self, "at least 1", lambda value: value >= 1, "bottleneck")
        check(self, "more than 0, and finite", lambda value: 0 < value < inf, "mlp_ratio")

    def first(self, n_blocks: int) -> int:
        """How many blocks stay before the first gated one.

        Raises:
            UsageError: the tower has fewer than ``last_k``.
        """
        if self.last_k > n_blocks:
            raise UsageError(f"--last-k {self.last_k}: the image tower has {n_blocks} blocks; 0 takes all of them")
        return n_blocks - self.last_k if self.last_k else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class ReactConfig:
    """What learns."""

    mode: Mode = "gated-image"
    """gated-image: new gated blocks in the frozen image tower. locked-text: the image tower. locked-image: the text
    tower. full: both."""
    gated: GatedConfig = field(default_factory=GatedConfig)
    gates_only: bool = False
    """Of the gated blocks only the gates learn; needs --start-from, which the rest of them comes from."""
    logit_scale: Literal["trainable", "frozen"] = "trainable"
    """Whether the temperature learns; it stays between 1 and 100."""
    activation_checkpointing: bool = False
    """Compute the layers that learn twice instead of keeping what they computed: slower, for less memory."""
    compile: bool = False
    """Compile what is computed every step with torch.compile: minutes at the start, faster from then on."""

    def __post_init__(self) -> None:
        if self.gates_only and self.mode != "gated-image":
            raise UsageError(f"--gates-only is for --mode gated-image, not {self.mode}")
        if self.gated != GatedConfig() and self.mode != "gated-image":
            raise UsageError(
                f"--last-k, --branches, --bottleneck, --mlp-ratio are of gated blocks, and --mode {self.mode} has none"
            )

    @property
    def learning_rate(self) -> float:
        """As published."""
        return GATED_RATE if self.mode == "gated-image" else TOWER_RATE

    @property
    def learns_images(self) -> bool:
        return self.mode != "locked-image"

    @property
    def learns_texts(self) -> bool:
        return self.mode in ("locked-image", "full")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """How pairs become batches."""

    augmentation: Augmentation = "react"
    """react: random crops, colours and erasing, as published. none: as the model sees pictures when it is used."""
    positives: Positives = "own"
    """Right answers to a picture: its own caption, all equal captions, or the captions of its class (UniCL)."""
    cache_layers: bool = True
    """With --augmentation none, compute once what the layers below the first that learns make of each picture."""
    cache_dtype: Literal["float16", "float32"] = "float16"
    """Numbers in that cache: float16 halves it and rounds to 5e-4, float32 keeps every bit."""
    readers: int | None = None
    """Threads or processes that read pictures, each worker; as many as it has CPUs unless given."""

    def __post_init__(self) -> None:
        check(self, "at least 1", lambda value: value >= 1, "readers")
