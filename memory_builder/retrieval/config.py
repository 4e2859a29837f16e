"""Settings of ``memory-builder retrieve``, stored with its output."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from tyro.conf import arg

from memory_builder.base.types import Modality
from memory_builder.errors import UsageError
from memory_builder.retrieval.copies.thresholds import Thresholds
from memory_builder.retrieval.selection import SelectConfig

Mode = Literal["t2i", "t2t", "i2i", "i2t"]
MODES: tuple[Mode, ...] = ("t2i", "t2t", "i2i", "i2t")
BOTH: tuple[Mode, ...] = ("t2i", "t2t")
MAX_MISSING = 0.1


def query_modality_of(mode: Mode) -> Modality:
    """Modality of a mode's queries."""
    return "text" if mode[0] == "t" else "image"


def modality_of(mode: Mode) -> Modality:
    """Modality of the vectors that a mode searches."""
    return "text" if mode[2] == "t" else "image"


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryConfig:
    """Queries, and the number and minimum score of their hits."""

    mode: tuple[Literal["t2i", "t2t", "i2i", "i2t", "both"], ...] = ("t2i",)
    """Retrieval directions, united: t2i (class names to pictures), t2t (class names to captions), i2i and i2t (example
    pictures of --classes to pictures and captions); both: t2i and t2t."""
    per_query: int = 50
    """Rows to retrieve for each query."""
    average: bool = False
    """Search once for each class with the mean of its prompts' embeddings, instead of once for each prompt."""
    min_score: tuple[str, ...] = ()
    """Minimum cosine of a hit: a number, or MODE=NUMBER for each of several modes."""
    where: str | None = None
    """Filter over metadata columns, such as "width >= 256"."""
    block_queries: int = 4_096
    """Queries searched at a time, the unit of resuming."""

    def __post_init__(self) -> None:
        for name in ("per_query", "block_queries"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: at least 1")
        if not self.mode:
            raise UsageError(f"--mode: at least one of {', '.join(MODES)}")
        self.min_scores()

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes named, each once, in a fixed order."""
        named = {*self.mode, *(BOTH if "both" in self.mode else ())}
        return tuple(mode for mode in MODES if mode in named)

    def min_scores(self) -> dict[Mode, float]:
        """Mode → minimum score, for modes that have one."""
        least: dict[Mode, float] = {}
        for given in self.min_score:
            name, _, number = given.rpartition("=")
            modes = [mode for mode in self.modes if name in ("", mode)]
            try:
                least |= dict.fromkeys(modes, float(number))
            except ValueError:
                modes = []
            if not modes or (not name and len(self.modes) > 1):
                raise UsageError(
                    f"--min-score {given}: expected a cosine such as 0.25, or with several modes one for each, "
                    f"such as {self.modes[0]}=0.25 (modes here: {', '.join(self.modes)})"
                )
        return least


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrieveConfig:
    """Size of the subset, removal of near duplicates, and extras."""

    ask: Annotated[QueryConfig, arg(name="queries")] = field(default_factory=QueryConfig)
    select: Annotated[SelectConfig, arg(name="selection")] = field(default_factory=SelectConfig)
    leaks: Annotated[Thresholds, arg(name="near-duplicates")] = field(default_factory=Thresholds)
    dedup: float | None = None
    """Minimum cosine of near duplicates, of which the one with the best score stays (default: only identical files are
    removed)."""
    shard_pairs: int = 10_000
    """Pairs in a tar; those of one source shard stay together."""
    support: int = 16
    """Pairs in each class's support set, best first."""
    strip: int = 8
    """Pictures of each class on the page."""

    def __post_init__(self) -> None:
        if self.dedup is not None and not 0 < self.dedup <= 1:
            raise UsageError(f"--dedup {self.dedup}: expected a cosine above 0 and up to 1, such as 0.95")
        for name in ("shard_pairs", "support"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: at least 1")
