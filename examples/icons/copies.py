"""Compare glyphs: which are near, and how well two correlate when they are laid on each other."""

import faiss
import numpy as np

from memory_builder.retrieval.copies.glyph import coarse, correlation

DIMENSIONS = 64  # of the coarse glyphs' principal components; most of what 256 pixels hold
MOST_LISTS, PROBES = 2048, 4


def nearest(ink: np.ndarray, count: int, *, least: float) -> tuple[np.ndarray, np.ndarray]:
    """Return i64[m, 2], pairs i < j of glyphs u8[n, 32, 32] near at 16 px, either way round, and f32[m], how near."""
    pixels = coarse(ink)
    reduce = faiss.PCAMatrix(pixels.shape[1], min(DIMENSIONS, len(ink)))
    reduce.train(pixels[:: max(1, len(pixels) // 20_000)])
    # The mean is left in: without it, a glyph and its inverse would not be opposites.
    basis = faiss.vector_to_array(reduce.A).reshape(-1, pixels.shape[1])[: reduce.d_out]
    small = np.ascontiguousarray(pixels @ basis.T)
    small /= np.maximum(np.linalg.norm(small, axis=1, keepdims=True), 1e-6)
    lists = min(MOST_LISTS, max(1, len(ink) // 100))
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(small.shape[1]), small.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
    index.train(small[:: max(1, len(small) // (lists * 40))])
    index.add(small)
    index.nprobe = min(lists, PROBES)
    found, near = [], []
    for sign in (1, -1):
        scores, ids = index.search(sign * small, min(count + 1, len(ink)))
        rows = np.repeat(np.arange(len(ink)), ids.shape[1])
        keep = (scores.ravel() >= least) & (ids.ravel() >= 0) & (rows != ids.ravel())
        found.append(np.sort(np.stack([rows[keep], ids.ravel()[keep]], axis=1), axis=1))
        near.append(scores.ravel()[keep])
    pairs, first = np.unique(np.concatenate(found), axis=0, return_index=True)
    return pairs, np.concatenate(near)[first]


def verify(pairs: np.ndarray, glyphs: np.ndarray, *, least: float, batch: int = 4096) -> np.ndarray:
    """Return f32[m], the correlation of each pair i64[m, 2] of glyphs u8[n, 32, 32]."""
    parts = np.split(pairs, range(batch, len(pairs), batch))
    scores = [correlation(glyphs[part[:, 0]], glyphs[part[:, 1]], least=least) for part in parts]
    return np.concatenate(scores) if scores else np.zeros(0, np.float32)
