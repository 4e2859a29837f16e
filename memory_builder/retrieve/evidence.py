"""What speaks for one picture being a copy of another: embeddings, perceptual hashes, aligned pixels.

Every copy counts whichever way it faces: what pictures are compared with is there mirrored too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memory_builder.encoder import Vectors
from memory_builder.retrieve.aligned import (
    SHIFT_GAIN,
    Floats,
    Glyphs,
    bits_apart,
    coarse,
    correlation,
    hashes,
)
from memory_builder.retrieve.thresholds import Thresholds

BLOCK = 4_096
"""Pictures compared with at a time."""
NEAREST = 4
"""Glyphs that are compared pixel by pixel, of those that look alike at half the size."""
KINDS = ("embedding", "hash", "pixels")


@dataclass(frozen=True, slots=True)
class Signs:
    """What is known of n pictures."""

    vectors: Vectors
    """f16[n, d], unit rows."""
    glyphs: Glyphs
    """u8[n, 32, 32]."""

    def __len__(self) -> int:
        return len(self.glyphs)

    @staticmethod
    def joined(parts: Sequence["Signs"]) -> "Signs":
        return Signs(np.concatenate([p.vectors for p in parts]), np.concatenate([p.glyphs for p in parts]))


@dataclass(frozen=True, slots=True)
class Evidence:
    """For n pictures, the strongest evidence of each kind among those they were compared with."""

    values: dict[str, Floats]
    """Kind → f32[n]: cosine, bits that differ, correlation."""
    others: dict[str, npt.NDArray[np.int64]]
    """Kind → i64[n]: the picture it is evidence of."""

    def speaks(self, limits: Thresholds) -> dict[str, npt.NDArray[np.bool_]]:
        """Kind → bool[n]: whether it makes a picture a copy."""
        return {
            "embedding": self.values["embedding"] >= limits.leak_embedding,
            "hash": self.values["hash"] <= limits.leak_hash,
            "pixels": self.values["pixels"] >= limits.leak_pixels,
        }


class Compared:
    """Pictures to compare others with, each as it is and mirrored.

    Args:
        plain, mirrored: signs of the same m pictures.
    """

    def __init__(self, plain: Signs, mirrored: Signs) -> None:
        self.n = len(plain)
        self._signs = Signs.joined([plain, mirrored])
        self._hashes = hashes(self._signs.glyphs)
        self._coarse = coarse(self._signs.glyphs)

    def evidence(self, signs: Signs, *, least: float, without: npt.NDArray[np.int64] | None = None) -> Evidence:
        """The strongest evidence of each kind for each picture.

        Args:
            signs: of n pictures.
            least: correlation of interest; a lower one may be told too low.
            without: for tests of a threshold, a group of each of the n and (behind them) of the m pictures: those of
                one group are not compared. -1 is no group.
        """
        n = len(signs)
        vectors, small, bits = signs.vectors.astype(np.float32), coarse(signs.glyphs), hashes(signs.glyphs)
        embedding, of_embedding = np.full(n, -1, np.float32), np.zeros(n, np.int64)
        apart, of_apart = np.full(n, 64, np.float32), np.zeros(n, np.int64)
        near, of_near = np.full((n, NEAREST), -1, np.float32), np.zeros((n, NEAREST), np.int64)
        for start in range(0, len(self._signs), BLOCK):
            here = slice(start, start + BLOCK)
            same = self._same(without, n, here)
            cosines = vectors @ self._signs.vectors[here].astype(np.float32).T  # f32[n, b]
            differing = bits_apart(bits, self._hashes[here]).astype(np.float32)
            alike = np.abs(small @ self._coarse[here].T)
            if same is not None:
                cosines[same], differing[same], alike[same] = -1, 64, -1
            _keep_best(cosines, start, embedding, of_embedding)
            differing *= -1
            negative = -apart
            _keep_best(differing, start, negative, of_apart)
            apart = -negative
            near, of_near = _keep_nearest(alike, start, near, of_near)
        pixels, of_pixels = self._look_closely(signs.glyphs, near, of_near, least)
        others = {"embedding": of_embedding % self.n, "hash": of_apart % self.n, "pixels": of_pixels % self.n}
        return Evidence({"embedding": embedding, "hash": apart, "pixels": pixels}, others)

    def _same(self, without: npt.NDArray[np.int64] | None, n: int, here: slice) -> npt.NDArray[np.bool_] | None:
        if without is None:
            return None
        mine, theirs = without[:n], np.tile(without[n:], 2)[here]
        same: npt.NDArray[np.bool_] = (mine[:, None] == theirs[None]) & (mine[:, None] >= 0)
        return same

    def _look_closely(
        self, glyphs: Glyphs, near: Floats, of_near: npt.NDArray[np.int64], least: float
    ) -> tuple[Floats, npt.NDArray[np.int64]]:
        """The best correlation of each glyph with those near to it at half the size, and with which."""
        closest = near.copy()
        picture, place = np.nonzero(near >= least - SHIFT_GAIN)
        found = correlation(glyphs[picture], self._signs.glyphs[of_near[picture, place]], least=1.0)
        closest[picture, place] = found
        best = closest.argmax(axis=1)[:, None]
        values, others = np.take_along_axis(closest, best, 1)[:, 0], np.take_along_axis(of_near, best, 1)[:, 0]
        return values, others


def _keep_best(scores: Floats, start: int, best: Floats, of_best: npt.NDArray[np.int64]) -> None:
    """Raise ``best``, f32[n], to what f32[n, b] reach."""
    places = scores.argmax(axis=1)
    values = scores[np.arange(len(scores)), places]
    better = values > best
    best[better], of_best[better] = values[better], start + places[better]


def _keep_nearest(
    scores: Floats, start: int, near: Floats, of_near: npt.NDArray[np.int64]
) -> tuple[Floats, npt.NDArray[np.int64]]:
    """The NEAREST of those there were and f32[n, b]."""
    count = min(NEAREST, scores.shape[1])
    places = np.argpartition(-scores, count - 1, axis=1)[:, :count]
    values = np.concatenate([near, np.take_along_axis(scores, places, 1)], axis=1)
    others = np.concatenate([of_near, start + places], axis=1)
    order = np.lexsort((others, -values))[:, :NEAREST]
    return np.take_along_axis(values, order, 1), np.take_along_axis(others, order, 1)
