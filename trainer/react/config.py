"""Settings of ``memory-builder train react``. Imports no torch, so that the command starts at once."""

from dataclasses import dataclass, field
from math import inf
from typing import Annotated, Literal

from tyro.conf import arg

from memory_builder.base.arguments import check
from memory_builder.errors import UsageError

Augmentation = Literal["react", "none"]
Branches = Literal["both", "attention", "mlp"]
Mode = Literal["gated-image", "locked-text", "locked-image", "full"]
SubsetPositives = Literal["own", "caption", "class"]
"""Positives of a picture: its own caption, all equal captions, or the captions of its class."""
GATED_LEARNING_RATE = 5e-4
TOWER_LEARNING_RATE = 5e-5
"""Peak learning rates as REACT published them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GatedConfig:
    """Number and size of the gated blocks."""

    last_k: int = 6
    """Number of the image tower's last blocks that get a gated block each; 0: all."""
    branches: Branches = "both"
    """Branches of a gated block: attention, MLP or both."""
    bottleneck: int | None = None
    """Attention width of a gated block (default: the tower's width). Heads and MLP shrink in proportion."""
    mlp_ratio: float | None = None
    """MLP width of a gated block as a multiple of its attention width (default: as in the tower's blocks)."""

    def __post_init__(self) -> None:
        check(self, "a number of blocks, or 0 for all", lambda value: value >= 0, "last_k")
        check(self, "at least 1", lambda value: value >= 1, "bottleneck")
        check(self, "more than 0, and finite", lambda value: 0 < value < inf, "mlp_ratio")

    def first(self, n_blocks: int) -> int:
        """Number of blocks below the first gated one.

        Raises:
            UsageError: the tower has fewer than ``last_k`` blocks.
        """
        if self.last_k > n_blocks:
            raise UsageError(f"--last-k {self.last_k}: the image tower has {n_blocks} blocks; 0 takes all of them")
        return n_blocks - self.last_k if self.last_k else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class ReactConfig:
    """Parameters that are trained."""

    mode: Mode = "gated-image"
    """Trained parameters. gated-image: new gated blocks in the frozen image tower. locked-text: the image tower.
    locked-image: the text tower (LiT). full: both towers."""
    gated: Annotated[GatedConfig, arg(name="gated-blocks")] = field(default_factory=GatedConfig)
    gates_only: bool = False
    """Train only the gates α and β. Requires --start-from: the other weights of the gated blocks are loaded from it."""
    logit_scale: Literal["trainable", "frozen"] = "trainable"
    """Train or freeze the temperature; its factor stays between 1 and 100."""
    activation_checkpointing: bool = False
    """Recompute activations of the trained layers in the backward pass: less memory, slower steps."""
    compile: bool = False
    """Compile the towers with torch.compile: minutes at the start, faster steps."""

    def __post_init__(self) -> None:
        if self.gates_only and self.mode != "gated-image":
            raise UsageError(f"--gates-only is for --mode gated-image, not {self.mode}")
        if self.gated != GatedConfig() and self.mode != "gated-image":
            raise UsageError(
                f"--last-k, --branches, --bottleneck, --mlp-ratio are for gated blocks, and --mode {self.mode} has none"
            )

    @property
    def learning_rate(self) -> float:
        """Published peak learning rate of the mode."""
        return GATED_LEARNING_RATE if self.mode == "gated-image" else TOWER_LEARNING_RATE

    @property
    def trains_images(self) -> bool:
        """Whether image embeddings change in training."""
        return self.mode != "locked-image"

    @property
    def trains_texts(self) -> bool:
        """Whether text embeddings change in training."""
        return self.mode in ("locked-image", "full")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Augmentation, positives and caches of the training pairs."""

    augmentation: Augmentation = "react"
    """react: random crops, RandAugment and erasing, as published. none: the model's own preprocessing."""
    positives: SubsetPositives = "own"
    """Positives of a picture: its own caption, all equal captions, or all captions of its class (UniCL)."""
    cache_layers: bool = True
    """With --augmentation none, compute the outputs of the frozen layers once and train from that cache."""
    cache_dtype: Literal["float16", "float32"] = "float16"
    """Number format of that cache: float16 halves it and rounds to 5e-4, float32 is exact."""
    readers: int | None = None
    """Threads or processes of each worker that read pictures (default: its number of CPUs)."""

    def __post_init__(self) -> None:
        check(self, "at least 1", lambda value: value >= 1, "readers")
