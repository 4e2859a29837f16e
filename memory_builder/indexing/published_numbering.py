"""Row numbers of a published index: map them to row ids, and check the mapping by the codes.

An index published with embeddings numbers their rows densely, in the order of their file names. It does not name these
files: so a sample of its codes is decoded and compared with the vectors of the mapped rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from memory_builder.base.types import Ids, Modality, row_ids
from memory_builder.catalog.commits import Commit
from memory_builder.catalog.rows import Rows
from memory_builder.errors import IndexBuildError
from memory_builder.readers.shard_uri import split_uri

SAMPLE_ROWS = 1 << 16
"""Number of compared rows; of each file at least MIN_SAMPLE_ROWS."""
MIN_SAMPLE_ROWS = 32
MIN_AGREEMENT = 0.95
"""Share of agreeing rows that each file needs. All agree if the mapping is right."""
SLACK = 0.05
"""Tolerated excess of a code's error over the best code's: published vectors are rounded."""


@dataclass(frozen=True, slots=True)
class Numbering:
    """Mapping of a published index's dense row numbers to row ids."""

    ordinals: tuple[int, ...]
    """Shards in the order in which the index numbers their rows."""
    sizes: tuple[int, ...]
    """Number of rows in each shard."""

    @staticmethod
    def of(commits: Sequence[Commit]) -> "Numbering":
        """Number the imported shards in the order of their file names; of a file imported twice, the latest shard
        counts."""
        latest: dict[str, Commit] = {}
        for commit in sorted(commits, key=lambda commit: commit.ordinal):
            piece = split_uri(commit.uri)[1]
            name = piece.embeddings or piece.vectors or ""
            if commit.n_written or name not in latest:
                latest[name] = commit
        ordered = [latest[name] for name in sorted(latest)]
        return Numbering(tuple(c.ordinal for c in ordered), tuple(c.n_written for c in ordered))

    @property
    def n_rows(self) -> int:
        return sum(self.sizes)

    @property
    def starts(self) -> Ids:
        """i64[n] number of the first row of each shard."""
        return np.cumsum([0, *self.sizes[:-1]], dtype=np.int64)

    def split(self, numbers: Ids) -> tuple[Ids, Ids]:
        """Numbers → (shard's position in ``ordinals``, row in it); position -1 for numbers out of range."""
        which = np.searchsorted(self.starts, numbers, side="right") - 1
        # several shards start at one number if some are empty: searchsorted returns the last, which has the rows
        rows = numbers - self.starts[np.maximum(which, 0)]
        is_known = (numbers >= 0) & (numbers < self.n_rows)
        return np.where(is_known, which, -1), rows

    def ids(self, numbers: Ids) -> Ids:
        """Row numbers → row ids."""
        which, rows = self.split(numbers)
        return np.asarray(self.ordinals, np.int64)[which] << 32 | rows


def check_pairing(whole: Any, numbering: Numbering, rows: Rows, modality: Modality, published: str) -> None:
    """Compare codes of every file with the vectors of their mapped rows.

    Args:
        whole: the published index, an IVF index behind any transform.
        numbering: mapping of its row numbers.
        rows: the memory's rows.
        modality: modality of its vectors.
        published: its path, for messages.

    Raises:
        IndexBuildError: too few codes agree, or numbers are repeated or out of range.
    """
    sample = _sample(numbering)
    n_agreeing = np.zeros(len(numbering.ordinals), np.int64)
    n_compared = np.zeros(len(numbering.ordinals), np.int64)
    n_met = np.zeros(len(sample), np.int64)
    n_foreign = 0
    ivf = faiss.downcast_index(faiss.extract_index_ivf(whole))
    for number in range(ivf.nlist):
        numbers = _numbers(ivf, number)
        n_foreign += int(((numbers < 0) | (numbers >= numbering.n_rows)).sum())
        offsets = np.flatnonzero(np.isin(numbers, sample))
        if not len(offsets):
            continue
        n_met[np.searchsorted(sample, numbers[offsets])] += 1
        vectors = rows.vectors(numbering.ids(numbers[offsets]), modality)  # f32[m, d]
        is_present = vectors.any(axis=1)
        which = numbering.split(numbers[offsets])[0][is_present]
        agree = _agree(whole, ivf, number, offsets[is_present], vectors[is_present])
        np.add.at(n_compared, which, 1)
        np.add.at(n_agreeing, which, agree)
    if n_foreign or (n_met > 1).any():
        wrong = f"{n_foreign:,} numbers out of range" if n_foreign else f"{int((n_met > 1).sum()):,} repeated numbers"
        raise IndexBuildError(f"{published} holds {wrong}: it does not number these {numbering.n_rows:,} rows from 0")
    bad = np.flatnonzero(n_agreeing < MIN_AGREEMENT * n_compared)
    if len(bad):
        piece = split_uri(rows.commits[numbering.ordinals[int(bad[0])]].uri)[1]
        file = piece.embeddings or piece.vectors
        raise IndexBuildError(
            f"{published} is not an index of these {modality} vectors in this order: of {n_compared.sum():,} rows "
            f"compared, the codes of {n_agreeing.sum():,} agree with their vectors (file {file}: "
            f"{n_agreeing[bad[0]]:,} of {n_compared[bad[0]]:,}). "
            "Was it built from other files, an earlier state, the other modality, or in "
            "another order than by file name?"
        )


def _sample(numbering: Numbering) -> Ids:
    """Draw row numbers of every shard, ascending."""
    generator = np.random.default_rng(0)
    each = max(MIN_SAMPLE_ROWS, SAMPLE_ROWS // max(1, len(numbering.sizes)))
    drawn = [np.zeros(0, np.int64)]
    for start, size in zip(numbering.starts.tolist(), numbering.sizes, strict=True):
        drawn.append(start + np.sort(generator.choice(size, min(size, each), replace=False)))
    return np.concatenate(drawn)


def _numbers(ivf: Any, number: int) -> Ids:
    """i64[n] row numbers of one inverted list, copied."""
    lists = ivf.invlists
    n = lists.list_size(number)
    if not n:
        return np.zeros(0, np.int64)
    ids = lists.get_ids(number)
    try:
        return np.array(faiss.rev_swig_ptr(ids, n), np.int64)
    finally:
        lists.release_ids(number, ids)


def _agree(whole: Any, ivf: Any, number: int, offsets: Ids, vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """bool[m]: whether the codes at these offsets of a list are about as close to these vectors as possible."""
    if not len(offsets):
        return np.zeros(0, np.bool_)
    moved = _transformed(whole, vectors)
    stored = np.stack([_code(ivf, number, int(offset)) for offset in offsets])  # u8[m, code_size]
    decoded = _decode(ivf, number, stored)
    best = _decode(ivf, number, _encode(ivf, number, moved))
    size = np.linalg.norm(moved, axis=1)
    error, least = (np.linalg.norm(moved - vector, axis=1) / size for vector in (decoded, best))
    return np.asarray(error <= least * (1 + SLACK) + SLACK)


def _transformed(whole: Any, vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Apply the transforms before the IVF index to the vectors."""
    outer = faiss.downcast_index(whole)
    if not isinstance(outer, faiss.IndexPreTransform):
        return vectors
    for i in range(outer.chain.size()):
        vectors = faiss.downcast_VectorTransform(outer.chain.at(i)).apply(np.ascontiguousarray(vectors))
    return vectors


def _code(ivf: Any, number: int, offset: int) -> npt.NDArray[np.uint8]:
    code = ivf.invlists.get_single_code(number, offset)
    try:
        return np.array(faiss.rev_swig_ptr(code, ivf.code_size), np.uint8)
    finally:
        ivf.invlists.release_codes(number, code)


def _encode(ivf: Any, number: int, vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Encode vectors as codes of this list, u8[m, code_size]."""
    vectors = np.ascontiguousarray(vectors, np.float32)
    lists = np.full(len(vectors), number, np.int64)
    codes = np.zeros((len(vectors), ivf.code_size), np.uint8)
    ivf.encode_vectors(len(vectors), faiss.swig_ptr(vectors), faiss.swig_ptr(lists), faiss.swig_ptr(codes))
    return codes


def _decode(ivf: Any, number: int, codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Decode codes of this list to vectors, f32[m, d]."""
    coarse = np.frombuffer(number.to_bytes(8, "little"), np.uint8)[: ivf.coarse_code_size()]
    whole = np.hstack([np.broadcast_to(coarse, (len(codes), len(coarse))), codes])
    return np.asarray(ivf.sa_decode(np.ascontiguousarray(whole)))


def ids_of_part(numbering: Numbering, numbers: Ids, is_wanted: dict[int, npt.NDArray[np.bool_]]) -> Ids:
    """Map row numbers of one list to row ids; -1 for rows outside this part.

    Args:
        numbering: mapping of the numbers.
        numbers: i64[n] row numbers.
        is_wanted: ordinal of each of the part's shards → bool[n], its rows to keep.
    """
    which, rows = numbering.split(numbers)
    ids = np.full(len(numbers), -1, np.int64)
    for index in np.unique(which[which >= 0]).tolist():
        ordinal = numbering.ordinals[index]
        if ordinal in is_wanted:
            in_shard = np.flatnonzero(which == index)
            held = in_shard[is_wanted[ordinal][rows[in_shard]]]
            ids[held] = row_ids(ordinal, rows[held])
    return ids
