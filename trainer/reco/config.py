"""What ``memory-builder train reco`` can be told: settings alone, imported by the command without torch."""

from dataclasses import dataclass, field
from math import inf
from typing import Annotated, Literal

from tyro.conf import arg

from memory_builder.base.types import Modality
from memory_builder.errors import UsageError

SIDES: tuple[Modality, ...] = ("image", "text")
Positives = Literal["own", "caption"]
RATE, WEIGHT_DECAY, EPOCHS = 1e-3, 1e-5, 10
"""As published."""
SPARE = 40
"""Rows searched beyond those that are used, as some are dropped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FusionConfig:
    """How a query and its neighbours become one embedding; the same for both sides, with weights of their own."""

    fusion: Literal["transformer", "cross-attention", "mean"] = "transformer"
    """transformer: self-attention over query and neighbours. cross-attention: the query looks at its neighbours alone.
    mean: of the neighbours, mixed with the query by one learnt share."""
    k: Annotated[int, arg(aliases=["-k"])] = 10
    """Neighbours; 0 trains the same weights without retrieval, as a control."""
    heads: int = 8
    """Attention heads."""
    mlp_ratio: float = 1.0
    """Width of the layer's MLP, in widths of the embedding."""
    norm: Literal["post", "pre"] = "post"
    """Where the layer normalises: after each half, as torch does unless told, or before."""
    residual: bool = False
    """Add the query to what the layer returns."""
    rank_embeddings: bool = False
    """Tell the layer the query's and each neighbour's rank; without, neighbours are a set."""

    def __post_init__(self) -> None:
        if self.k < 0 or self.heads < 1 or not 0 < self.mlp_ratio < inf:
            raise UsageError(
                f"-k {self.k} at least 0, --heads {self.heads} at least 1, --mlp-ratio {self.mlp_ratio} more than 0"
            )
        if self.fusion != "transformer" and self.k == 0:
            raise UsageError(f"--fusion {self.fusion} needs neighbours: -k at least 1")
        of_a_layer = (self.heads, self.mlp_ratio, self.norm, self.rank_embeddings)
        if self.fusion == "mean" and of_a_layer != (8, 1.0, "post", False):
            raise UsageError("--heads, --mlp-ratio, --norm, --rank-embeddings are of a layer: --fusion mean has none")


@dataclass(frozen=True, kw_only=True, slots=True)
class LookupConfig:
    """What is searched, and what of the rows found is fused. The paper's: uni-modal search, cross-modal fusion."""

    image_search: Modality = "image"
    """An image looks among the memory's images or texts."""
    image_fuse: Modality = "text"
    """An image is refined with the texts or the images of the rows it finds."""
    text_search: Modality = "text"
    """A text looks among the memory's images or texts."""
    text_fuse: Modality = "image"
    """A text is refined with the texts or the images of the rows it finds."""

    def search(self, side: Modality) -> Modality:
        """Where this side searches."""
        return self.image_search if side == "image" else self.text_search

    def fuse(self, side: Modality) -> Modality:
        """What this side is refined with."""
        return self.image_fuse if side == "image" else self.text_fuse


@dataclass(frozen=True, kw_only=True, slots=True)
class NeighbourConfig:
    """Which neighbours a training pair gets."""

    lookup: LookupConfig = field(default_factory=LookupConfig)
    looked_up: int = 10
    """Neighbours stored for each side of a pair; runs that share them may use fewer."""
    spare: int = SPARE
    """Rows searched beyond those, as some are dropped."""
    exclude: bool = True
    """Drop rows that are the pair itself, its picture, or its artwork. --no-exclude only to measure what that does."""
    apart: str | None = None
    """Also drop rows whose value in this metadata column is the pair's own, such as the site or the artist: at test
    time what is found comes from elsewhere."""
    near_duplicate: float = 0.95
    """Where no clusters are known: cosine of two pictures from which they count as one artwork."""

    def __post_init__(self) -> None:
        if self.looked_up < 1 or self.spare < 0:
            raise UsageError(f"--looked-up {self.looked_up} at least 1, --spare {self.spare} at least 0")
        if not 0 < self.near_duplicate <= 1:
            raise UsageError(f"--near-duplicate {self.near_duplicate}: a cosine, more than 0 and at most 1")
        if self.apart is not None and not self.exclude:
            raise UsageError(f"--apart {self.apart} drops rows, and --no-exclude keeps them all: give one of them")


def check_enough(fusion: FusionConfig, neighbours: NeighbourConfig) -> None:
    """Refuse a fusion of more neighbours than are looked up.

    Raises:
        UsageError
    """
    if fusion.k > neighbours.looked_up:
        raise UsageError(f"-k {fusion.k}: more than --looked-up {neighbours.looked_up}")
