"""Settings of ``memory-builder train reco``. Imports no torch, so that the command starts at once."""

from dataclasses import dataclass, field
from math import inf
from typing import Annotated, Literal

from tyro.conf import arg

from memory_builder.base.types import Modality
from memory_builder.errors import UsageError
from trainer.loop.config import LoopConfig, OptimizerConfig

LEARNING_RATE, WEIGHT_DECAY, EPOCHS = 1e-3, 1e-5, 10
"""Published settings."""
SPARE = 40
"""Rows searched beyond those needed, as some are dropped."""


def published_loop() -> LoopConfig:
    """Return the training loop with the published epochs and weight decay."""
    return LoopConfig(epochs=EPOCHS, optimizer=OptimizerConfig(weight_decay=WEIGHT_DECAY))


@dataclass(frozen=True, kw_only=True, slots=True)
class FusionConfig:
    """Architecture of the fusion, the same for images and texts, which have separate weights."""

    fusion: Literal["transformer", "cross-attention", "mean"] = "transformer"
    """transformer: self-attention over query and neighbours. cross-attention: the query attends to its neighbours only.
    mean: the neighbours' mean, interpolated with the query by one learned weight."""
    k: Annotated[int, arg(aliases=["-k"])] = 10
    """Number of neighbours. 0 trains the same weights without retrieval, as a control."""
    heads: int = 8
    """Number of attention heads."""
    mlp_ratio: float = 1.0
    """MLP width of the layer as a multiple of the embedding's width."""
    norm: Literal["post", "pre"] = "post"
    """Layer normalisation after (post, torch's default) or before (pre) attention and MLP."""
    residual: bool = False
    """Add the query to the output of the layer."""
    rank_embeddings: bool = False
    """Add a learned embedding of the rank to the query and each neighbour; without, neighbours are a set."""

    def __post_init__(self) -> None:
        if self.k < 0 or self.heads < 1 or not 0 < self.mlp_ratio < inf:
            raise UsageError(
                f"-k {self.k} at least 0, --heads {self.heads} at least 1, --mlp-ratio {self.mlp_ratio} more than 0"
            )
        if self.fusion != "transformer" and self.k == 0:
            raise UsageError(f"--fusion {self.fusion} needs neighbours: -k at least 1")
        of_a_layer = (self.heads, self.mlp_ratio, self.norm, self.rank_embeddings)
        if self.fusion == "mean" and of_a_layer != (8, 1.0, "post", False):
            raise UsageError(
                "--heads, --mlp-ratio, --norm, --rank-embeddings are for a layer, and --fusion mean has none"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class LookupConfig:
    """Modalities of search and fusion. Default: uni-modal search and cross-modal fusion, as in the paper."""

    image_search: Modality = "image"
    """Search the memory's images or texts with an image."""
    image_fuse: Modality = "text"
    """Fuse an image with the texts or the images of the rows retrieved for it."""
    text_search: Modality = "text"
    """Search the memory's images or texts with a text."""
    text_fuse: Modality = "image"
    """Fuse a text with the texts or the images of the rows retrieved for it."""

    def search(self, query_modality: Modality) -> Modality:
        """The modality that queries of this modality search."""
        return self.image_search if query_modality == "image" else self.text_search

    def fuse(self, query_modality: Modality) -> Modality:
        """The modality that queries of this modality are fused with."""
        return self.image_fuse if query_modality == "image" else self.text_fuse


@dataclass(frozen=True, kw_only=True, slots=True)
class NeighbourConfig:
    """Neighbours of the training pairs."""

    lookup: LookupConfig = field(default_factory=LookupConfig)
    looked_up: int = 10
    """Number of neighbours stored for the image and for the text of a pair; runs that share them may use fewer."""
    spare: int = SPARE
    """Rows searched beyond --looked-up, as some are dropped."""
    exclude: bool = True
    """Drop rows that are the pair itself, show the same picture, or the same artwork. --no-exclude: for ablations."""
    apart: str | None = None
    """Metadata column, such as the site or the artist: also drop rows that share the pair's value in it, as at test
    time retrieved rows come from other sites."""
    near_duplicate: float = 0.95
    """For pictures without a cluster: cosine from which two pictures count as the same artwork."""

    def __post_init__(self) -> None:
        if self.looked_up < 1 or self.spare < 0:
            raise UsageError(f"--looked-up {self.looked_up} at least 1, --spare {self.spare} at least 0")
        if not 0 < self.near_duplicate <= 1:
            raise UsageError(f"--near-duplicate {self.near_duplicate}: a cosine, more than 0 and at most 1")
        if self.apart is not None and not self.exclude:
            raise UsageError(f"--apart {self.apart} drops rows, and --no-exclude keeps them all: give one of them")


def check_enough(fusion: FusionConfig, neighbours: NeighbourConfig) -> None:
    """Refuse a fusion of more neighbours than are stored.

    Raises:
        UsageError: -k is more than --looked-up.
    """
    if fusion.k > neighbours.looked_up:
        raise UsageError(f"-k {fusion.k}: more than --looked-up {neighbours.looked_up}")
