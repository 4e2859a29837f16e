"""Thresholds above which two pictures count as near duplicates."""

from dataclasses import dataclass

from memory_builder.errors import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class Thresholds:
    """Thresholds of evidence for near duplicates of evaluation pictures; one kind is enough. Defaults suit icons and
    the bundled model."""

    leak_embedding: float = 0.9975
    """Minimum cosine of two pictures' embeddings."""
    leak_hash: int = 0
    """Maximum Hamming distance of two 64-bit perceptual hashes; -1: do not use hashes."""
    leak_miniature: float = 6.0
    """Maximum difference at 8 by 8 pixels, root mean square in levels of 255; -1: do not use it."""
    leak_pixels: float = 1.1
    """Minimum correlation of two aligned grey pictures; above 1: do not use it alone."""
    leak_both: float = 0.9518
    """Minimum mean of cosine and correlation with the same picture."""

    def __post_init__(self) -> None:
        if not -1 <= self.leak_hash <= 64:
            raise UsageError(f"--leak-hash {self.leak_hash}: expected a number of bits from -1 to 64")
        for name in ("leak_embedding", "leak_pixels", "leak_both"):
            if not getattr(self, name) > 0:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected a number above 0")
