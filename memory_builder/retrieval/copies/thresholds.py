"""From where on two pictures count as copies of one another."""

from dataclasses import dataclass

from memory_builder.errors import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class Thresholds:
    """Any one kind of evidence is enough. The defaults are for icons
    and the bundled model; cosines of another model may want others."""

    leak_embedding: float = 0.9975
    """Cosine of two pictures' embeddings."""
    leak_hash: int = 0
    """Bits of 64 in which two perceptual hashes may differ; -1: hashes are no evidence."""
    leak_miniature: float = 6.0
    """Levels of 255 by which two pictures differ at 8 by 8 pixels (root mean square); -1: this is no evidence."""
    leak_pixels: float = 1.1
    """Correlation of two pictures in grey, laid on each other by what they show; above 1: alone it is no evidence."""
    leak_both: float = 0.9518
    """Mean of these two with one and the same picture."""

    def __post_init__(self) -> None:
        if not -1 <= self.leak_hash <= 64:
            raise UsageError(f"--leak-hash {self.leak_hash}: expected a number of bits from -1 to 64")
        for name in ("leak_embedding", "leak_pixels", "leak_both"):
            if not getattr(self, name) > 0:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected a number above 0")
