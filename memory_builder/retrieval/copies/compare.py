"""Evidence that a picture is a near duplicate: embeddings, perceptual hashes, miniatures, aligned pixels.

Hashes and miniatures also match mirrored copies. The other kinds measure similarity and compare pictures unmirrored:
arrows to the left and to the right are similar when mirrored, and not duplicates.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memory_builder.base.types import Vectors
from memory_builder.retrieval.copies.glyph import Floats, Glyphs, bits_apart, coarse, hashes, stretched_correlation
from memory_builder.retrieval.copies.miniature import Miniatures, levels_apart
from memory_builder.retrieval.copies.thresholds import Thresholds

BLOCK = 4_096
"""Reference pictures compared at a time."""
NEAREST = {"embedding": 2, "hash": 1, "miniature": 1, "pixels": 4}
"""Number of nearest pictures by each kind to compare pixel by pixel; for ``pixels``, nearest at half the size."""
KINDS = ("embedding", "hash", "miniature", "pixels", "both")
NOTHING = -1000.0
"""Score below any other."""


@dataclass(frozen=True, slots=True)
class ImageSignatures:
    """Signatures of n pictures."""

    vectors: Vectors
    """f16[n, d] unit rows."""
    glyphs: Glyphs
    """u8[n, 32, 32]."""
    miniatures: Miniatures
    """u8[n, 8, 8, 3]."""

    def __len__(self) -> int:
        return len(self.glyphs)


@dataclass(frozen=True, slots=True)
class Groups:
    """Group numbers of pictures."""

    of_pictures: npt.NDArray[np.int64]
    """i64[n] groups of the pictures."""
    of_others: npt.NDArray[np.int64]
    """i64[m] groups of the reference pictures."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Strongest evidence of each kind for n pictures."""

    values: dict[str, Floats]
    """Kind → f32[n]: cosine, bits, levels, correlation, mean of cosine and correlation with one picture."""
    others: dict[str, npt.NDArray[np.int64]]
    """Kind → i64[n]: the reference picture with that evidence."""

    def passes(self, limits: Thresholds) -> dict[str, npt.NDArray[np.bool_]]:
        """Kind → bool[n]: whether the evidence passes its threshold."""
        return {
            "embedding": self.values["embedding"] >= limits.leak_embedding,
            "hash": self.values["hash"] <= limits.leak_hash,
            "miniature": self.values["miniature"] <= limits.leak_miniature,
            "pixels": self.values["pixels"] >= limits.leak_pixels,
            "both": self.values["both"] >= limits.leak_both,
        }


class ReferenceImages:
    """Reference pictures that others are compared with.

    Args:
        signs: signatures of m pictures.
    """

    def __init__(self, signs: ImageSignatures) -> None:
        self._signs = signs
        self._hashes = [hashes(glyphs) for glyphs in (signs.glyphs, signs.glyphs[:, :, ::-1])]  # unmirrored, mirrored
        self._miniatures = [signs.miniatures, signs.miniatures[:, :, ::-1]]
        self._coarse = coarse(signs.glyphs)

    def evidence(self, signs: ImageSignatures, *, least: float, without: Groups | None = None) -> Evidence:
        """Return the strongest evidence of each kind for each picture.

        Args:
            signs: signatures of n pictures.
            least: threshold of correlation; lower values may be underestimated.
            without: for tests of a threshold: pictures of the same group are not compared.
        """
        n = len(signs)
        vectors, small, bits = signs.vectors.astype(np.float32), coarse(signs.glyphs), hashes(signs.glyphs)
        near = {name: _Nearest(n, count) for name, count in NEAREST.items()}
        for start in range(0, len(self._signs), BLOCK):
            block = slice(start, start + BLOCK)
            bits_off = np.minimum(*(bits_apart(bits, both[block]) for both in self._hashes))
            levels_off = np.minimum(*(levels_apart(signs.miniatures, both[block]) for both in self._miniatures))
            alike = {
                "embedding": vectors @ self._signs.vectors[block].astype(np.float32).T,  # f32[n, b]
                "hash": -bits_off.astype(np.float32),
                "miniature": -levels_off,
                "pixels": np.abs(small @ self._coarse[block].T),
            }
            if without is not None:
                same = without.of_pictures[:, None] == without.of_others[block][None]
                for scores in alike.values():
                    scores[same] = NOTHING
            for name, scores in alike.items():
                near[name].add(scores, start)
        return self._compare_pixels(signs, near, least)

    def _compare_pixels(self, signs: ImageSignatures, near: dict[str, "_Nearest"], least: float) -> Evidence:
        """Compare each picture's pixels with those of its nearest reference pictures."""
        others = np.concatenate([nearest.positions for nearest in near.values()], axis=1)  # i64[n, c]
        allowed = np.concatenate([nearest.scores for nearest in near.values()], axis=1) > NOTHING
        pictures = np.repeat(np.arange(len(signs)), others.shape[1])
        flat = others.ravel()
        pixels = stretched_correlation(signs.glyphs[pictures], self._signs.glyphs[flat], least=least)
        vectors = signs.vectors.astype(np.float32)
        cosines = np.einsum("nd,ncd->nc", vectors, self._signs.vectors[others].astype(np.float32), optimize=True)
        pixels = np.where(allowed, pixels.reshape(others.shape), 0)
        scores = {
            "embedding": np.where(allowed, cosines, NOTHING),
            "pixels": pixels,
            "both": np.where(allowed, (cosines + pixels) / 2, NOTHING),
        }
        best = {kind: values.argmax(axis=1)[:, None] for kind, values in scores.items()}
        values = {kind: np.take_along_axis(scores[kind], best[kind], 1)[:, 0] for kind in best}
        positions = {kind: np.take_along_axis(others, best[kind], 1)[:, 0] for kind in best}
        for kind in ("hash", "miniature"):
            values[kind], positions[kind] = -near[kind].scores[:, 0], near[kind].positions[:, 0]
        return Evidence({kind: values[kind] for kind in KINDS}, {kind: positions[kind] for kind in KINDS})


class _Nearest:
    """Running top ``count`` of scores that come in blocks; positions order equal scores."""

    def __init__(self, n: int, count: int) -> None:
        self.scores = np.full((n, count), NOTHING, np.float32)
        self.positions = np.zeros((n, count), np.int64)

    def add(self, scores: Floats, start: int) -> None:
        """Add scores f32[n, b] of the positions from ``start`` on."""
        count = self.scores.shape[1]
        width = min(count, scores.shape[1])
        positions = np.argpartition(-scores, width - 1, axis=1)[:, :width]
        values = np.concatenate([self.scores, np.take_along_axis(scores, positions, 1)], axis=1)
        positions = np.concatenate([self.positions, start + positions], axis=1)
        order = np.lexsort((positions, -values))[:, :count]
        self.scores, self.positions = np.take_along_axis(values, order, 1), np.take_along_axis(positions, order, 1)
