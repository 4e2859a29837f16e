"""What a subset is made of, and how: the settings of ``memory-builder retrieve``, kept with its output."""

from dataclasses import dataclass, field
from typing import Literal

from memory_builder.base.types import Modality
from memory_builder.errors import UsageError
from memory_builder.retrieval.copies.thresholds import Thresholds
from memory_builder.retrieval.selection import SelectConfig

Mode = Literal["t2i", "t2t", "i2i", "i2t"]
MODES: tuple[Mode, ...] = ("t2i", "t2t", "i2i", "i2t")
BOTH: tuple[Mode, ...] = ("t2i", "t2t")
MAX_MISSING = 0.1


def query_side(mode: Mode) -> Modality:
    """What is asked with."""
    return "text" if mode[0] == "t" else "image"


def key_side(mode: Mode) -> Modality:
    """What is asked for."""
    return "text" if mode[2] == "t" else "image"


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryConfig:
    """What is looked for, and how much of it."""

    mode: tuple[Literal["t2i", "t2t", "i2i", "i2t", "both"], ...] = ("t2i",)
    """What asks for what: t2i (class names for pictures), t2t (for captions), i2i and i2t (the example pictures of
    --classes); several are united. both: t2i and t2t."""
    per_query: int = 50
    """Rows found for each query."""
    average: bool = False
    """One query a class, the mean of its templates' vectors, instead of one a template."""
    min_score: tuple[str, ...] = ()
    """Cosine below which a hit does not count: a number, or MODE=NUMBER for each of several modes."""
    where: str | None = None
    """Only rows whose metadata fulfil this, such as "width >= 256"."""
    block_queries: int = 4_096
    """Queries searched at a time: what is done again after a kill."""

    def __post_init__(self) -> None:
        for name in ("per_query", "block_queries"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: at least 1")
        if not self.mode:
            raise UsageError(f"--mode: at least one of {', '.join(MODES)}")
        self.least_scores()

    @property
    def modes(self) -> tuple[Mode, ...]:
        """Those that were named, each once, in a fixed order."""
        named = {*self.mode, *(BOTH if "both" in self.mode else ())}
        return tuple(mode for mode in MODES if mode in named)

    def least_scores(self) -> dict[Mode, float]:
        """Of each mode that has one."""
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
    """Everything that decides what is in a subset, beside its memory, classes and evaluation sets."""

    ask: QueryConfig = field(default_factory=QueryConfig)
    select: SelectConfig = field(default_factory=SelectConfig)
    leaks: Thresholds = field(default_factory=Thresholds)
    dedup: float | None = None
    """Cosine of two pictures from which they count as the same one; the better claimed stays. Pictures of the same
    bytes always do."""
    shard_pairs: int = 10_000
    """Pairs of an output tar; what comes of one source shard is not split."""
    support: int = 16
    """Pairs of each class in its support set, the best first."""
    strip: int = 8
    """Pictures of each class on the page."""

    def __post_init__(self) -> None:
        if self.dedup is not None and not 0 < self.dedup <= 1:
            raise UsageError(f"--dedup {self.dedup}: expected a cosine above 0 and up to 1, such as 0.95")
        for name in ("shard_pairs", "support"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: at least 1")
