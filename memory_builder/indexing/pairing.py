"""Which row each number of a published index means, and whether its codes say so too.

An index published with embeddings numbers their rows densely, in the order of their files' names. Nothing in it says
which files those were: so a sample of its codes is decoded and compared with the vectors of the rows they stand for.
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
"""Rows compared in all; of each file at least MIN_SAMPLE_ROWS."""
MIN_SAMPLE_ROWS = 32
MIN_AGREEMENT = 0.95
"""Of the rows of each file. All agree where codes and vectors belong together."""
SLACK = 0.05
"""By how much a code may be farther from its vector than the best code: published vectors are rounded."""


@dataclass(frozen=True, slots=True)
class Numbering:
    """Dense row numbers of a published index ↔ row ids."""

    ordinals: tuple[int, ...]
    """Shards in the order in which the index numbers their rows."""
    sizes: tuple[int, ...]
    """Rows in each."""

    @staticmethod
    def of(commits: Sequence[Commit]) -> "Numbering":
        """That of imported shards: their files in order of their names, of one that was imported again the latest."""
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
        """The number of the first row of each shard, i64[n]."""
        return np.cumsum([0, *self.sizes[:-1]], dtype=np.int64)

    def split(self, numbers: Ids) -> tuple[Ids, Ids]:
        """Numbers → (which of the shards, row in it); of a number that is none of theirs, shard -1."""
        which = np.searchsorted(self.starts, numbers, side="right") - 1
        # of shards without rows several begin at one number: searchsorted names the last, which has them
        rows = numbers - self.starts[np.maximum(which, 0)]
        is_known = (numbers >= 0) & (numbers < self.n_rows)
        return np.where(is_known, which, -1), rows

    def ids(self, numbers: Ids) -> Ids:
        """Numbers of rows → row ids."""
        which, rows = self.split(numbers)
        return np.asarray(self.ordinals, np.int64)[which] << 32 | rows


def check_pairing(whole: Any, numbering: Numbering, rows: Rows, modality: Modality, published: str) -> None:
    """Compare codes of every file with the vectors of the rows that they are taken for.

    Args:
        whole: the published index, an IVF index behind any transform.
        numbering: what its numbers mean.
        rows: the memory's rows.
        keys: the modality of the vectors that it is taken for an index of.
        place: where it is, for messages.

    Raises:
        IndexBuildError: too few agree, numbers come twice, or there are numbers of no row.
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
        wrong = f"{n_foreign:,} numbers of no row" if n_foreign else f"{int((n_met > 1).sum()):,} numbers twice"
        raise IndexBuildError(f"{published} holds {wrong}: it does not number these {numbering.n_rows:,} rows from 0")
    bad = np.flatnonzero(n_agreeing < MIN_AGREEMENT * n_compared)
    if len(bad):
        piece = split_uri(rows.commits[numbering.ordinals[int(bad[0])]].uri)[1]
        file = piece.embeddings or piece.vectors
        raise IndexBuildError(
            f"{published} is not an index of these {modality} vectors in this order: of {n_compared.sum():,} rows "
            f"compared, the codes of {n_agreeing.sum():,} agree with their vectors (file {file}: "
            f"{n_agreeing[bad[0]]:,} of {n_compared[bad[0]]:,}). "
            "Was it built of other files, of an earlier state, of the other modality, or in "
            "another order than that of the files' names?"
        )


def _sample(numbering: Numbering) -> Ids:
    """Numbers of some rows of every shard, ascending."""
    generator = np.random.default_rng(0)
    each = max(MIN_SAMPLE_ROWS, SAMPLE_ROWS // max(1, len(numbering.sizes)))
    drawn = [np.zeros(0, np.int64)]
    for start, size in zip(numbering.starts.tolist(), numbering.sizes, strict=True):
        drawn.append(start + np.sort(generator.choice(size, min(size, each), replace=False)))
    return np.concatenate(drawn)


def _numbers(ivf: Any, number: int) -> Ids:
    """The row numbers in one inverted list, i64[n]; a copy."""
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
    """Whether the codes at these places of a list are about as near to these vectors as codes can be: bool[m]."""
    if not len(offsets):
        return np.zeros(0, np.bool_)
    moved = _transformed(whole, vectors)
    stored = np.stack([_code(ivf, number, int(offset)) for offset in offsets])  # u8[m, code_size]
    decoded = _decode(ivf, number, stored)
    best = _decode(ivf, number, _encode(ivf, number, moved))
    size = np.linalg.norm(moved, axis=1)
    off, least = (np.linalg.norm(moved - made, axis=1) / size for made in (decoded, best))
    return np.asarray(off <= least * (1 + SLACK) + SLACK)


def _transformed(whole: Any, vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The vectors as the IVF index behind a chain of transforms gets them."""
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
    """The codes that these vectors have in this list, u8[m, code_size]."""
    vectors = np.ascontiguousarray(vectors, np.float32)
    lists = np.full(len(vectors), number, np.int64)
    codes = np.zeros((len(vectors), ivf.code_size), np.uint8)
    ivf.encode_vectors(len(vectors), faiss.swig_ptr(vectors), faiss.swig_ptr(lists), faiss.swig_ptr(codes))
    return codes


def _decode(ivf: Any, number: int, codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """The vectors that codes of this list stand for, f32[m, d]."""
    coarse = np.frombuffer(number.to_bytes(8, "little"), np.uint8)[: ivf.coarse_code_size()]
    whole = np.hstack([np.broadcast_to(coarse, (len(codes), len(coarse))), codes])
    return np.asarray(ivf.sa_decode(np.ascontiguousarray(whole)))


def ids_of_part(numbering: Numbering, numbers: Ids, is_wanted: dict[int, npt.NDArray[np.bool_]]) -> Ids:
    """Row ids of the numbers in one list; -1 for rows that this part does not hold.

    Args:
        numbering: what the numbers mean.
        numbers: i64[n].
        is_wanted: by ordinal of the part's shards, which of its rows are held.
    """
    which, rows = numbering.split(numbers)
    ids = np.full(len(numbers), -1, np.int64)
    for index in np.unique(which[which >= 0]).tolist():
        ordinal = numbering.ordinals[index]
        if ordinal in is_wanted:
            here = np.flatnonzero(which == index)
            held = here[is_wanted[ordinal][rows[here]]]
            ids[held] = row_ids(ordinal, rows[held])
    return ids
