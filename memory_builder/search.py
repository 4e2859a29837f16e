"""An index opened for search: its parts scanned together, candidates re-ranked exactly from the float16 vectors."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from memory_builder.errors import CorruptMemoryError
from memory_builder.parts import read_faiss, read_part_record, read_quantizer_hash
from memory_builder.rows import NO_ROW, Ids, Keys, Rows
from memory_builder.storage import Store

Scores = npt.NDArray[np.float32]
RERANK_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Effort:
    """How hard to look: lists probed, and candidates rescored exactly for every row asked for (0: none)."""

    nprobe: int
    refine: int


class OpenIndex:
    """The parts of one index, memory-mapped. Safe to search from several threads.

    Coarse quantization is done once a query, whatever the number of parts.
    """

    def __init__(self, store: Store, folder: str, parts: Sequence[str]) -> None:
        trained = f"{folder}/trained.faiss"
        self._trained = read_faiss(store.fetch(trained), f"{store.root}/{trained}")
        quantizer = read_quantizer_hash(store, folder)
        self._parts = [_open_part(store, folder, name, quantizer) for name in parts]
        self.is_exact = not isinstance(self._trained, faiss.IndexPreTransform | faiss.IndexIVF)
        if not self.is_exact:
            self._ivf = _ivf_of(self._trained)
            self._part_ivfs = [_ivf_of(part) for part in self._parts]

    @property
    def n_rows(self) -> int:
        return sum(part.ntotal for part in self._parts)

    @property
    def n_lists(self) -> int:
        return 1 if self.is_exact else int(self._ivf.nlist)

    @property
    def code_bytes(self) -> int:
        """Bytes scanned for a row."""
        return int(self._parts[0].d) * 4 if self.is_exact else int(self._ivf.code_size)

    @property
    def has_exact_codes(self) -> bool:
        """Whether scores need no re-ranking."""
        transformed = isinstance(self._trained, faiss.IndexPreTransform)  # it may have dropped dimensions
        return self.is_exact or (isinstance(self._ivf, faiss.IndexIVFFlat) and not transformed)

    def list_sizes(self) -> npt.NDArray[np.int64]:
        """i64[nlist] rows in each inverted list, over all parts."""
        if self.is_exact:
            return np.array([self.n_rows])
        by_part = [[ivf.invlists.list_size(i) for i in range(self.n_lists)] for ivf in self._part_ivfs]
        sizes: npt.NDArray[np.int64] = np.array(by_part, np.int64).sum(axis=0)
        return sizes

    def coarse(self, queries: Scores, nprobe: int) -> tuple[Scores, Scores, Ids]:
        """f32[q, d] → (queries as the lists see them f32[q, d'], list scores f32[q, nprobe], lists i64[q, nprobe])."""
        if isinstance(self._trained, faiss.IndexPreTransform):
            for i in range(self._trained.chain.size()):
                queries = faiss.downcast_VectorTransform(self._trained.chain.at(i)).apply(queries)
        quantizer = faiss.downcast_index(self._ivf.quantizer)
        params = (
            faiss.SearchParametersHNSW(efSearch=max(64, 2 * nprobe)) if isinstance(quantizer, faiss.IndexHNSW) else None
        )
        scores, lists = quantizer.search(queries, nprobe, params=params)
        return queries, scores, lists

    def candidates(self, queries: Scores, k: int, nprobe: int) -> tuple[Scores, Ids]:
        """f32[q, d] unit rows → scores f32[q, k] by code, ids i64[q, k], best first; short results padded with -1."""
        queries = np.ascontiguousarray(queries, np.float32)
        with _threads(1) if len(queries) == 1 else nullcontext():
            return self._candidates(queries, k, nprobe)

    def _candidates(self, queries: Scores, k: int, nprobe: int) -> tuple[Scores, Ids]:
        best = faiss.ResultHeap(len(queries), k, keep_max=True)
        if self.is_exact:
            for part in self._parts:
                best.add_result(*part.search(queries, k))
        else:
            queries, list_scores, lists = self.coarse(queries, min(nprobe, self.n_lists))
            for ivf in self._part_ivfs:
                best.add_result(*_scan(ivf, queries, k, list_scores, lists))
        best.finalize()
        return best.D, best.I

    def search(self, queries: Scores, k: int, effort: Effort, rows: Rows, keys: Keys) -> tuple[Scores, Ids]:
        """f32[q, d] unit rows → scores f32[q, k], ids i64[q, k], best first; padded with -1 and -inf.

        Memory stays bounded: queries are taken in blocks whose candidates' vectors fit into RERANK_BYTES.
        """
        wanted = min(max(k, k * effort.refine), max(k, self.n_rows))
        rerank = bool(effort.refine) and not self.has_exact_codes
        block = max(1, RERANK_BYTES // (4 * rows.d * wanted)) if rerank else max(1, len(queries))
        scores = np.full((len(queries), k), -np.inf, np.float32)
        ids = np.full((len(queries), k), NO_ROW, np.int64)
        for start in range(0, len(queries), block):
            here = slice(start, start + block)
            found_scores, found = self.candidates(queries[here], wanted, effort.nprobe)
            if rerank:
                found_scores = exact_scores(queries[here], found, rows, keys)
            scores[here], ids[here] = best_of(found_scores, found, k)
        return scores, ids


def best_of(scores: Scores, ids: Ids, k: int) -> tuple[Scores, Ids]:
    """The k best of [q, c ≥ k] candidates; equal scores in order of their ids: the same answer every time."""
    scores = np.where(ids == NO_ROW, np.float32(-np.inf), scores)
    order = np.lexsort((ids, -scores))[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)


def exact_scores(queries: Scores, ids: Ids, rows: Rows, keys: Keys) -> Scores:
    """f32[q, d], i64[q, c] → f32[q, c] inner products with the stored vectors; anything for id -1."""
    vectors = rows.vectors(ids.ravel(), keys).reshape(*ids.shape, rows.d)  # f32[q, c, d]
    scores: Scores = np.einsum("qd,qcd->qc", queries, vectors, optimize=True)
    return scores


@contextmanager
def _threads(n: int) -> Iterator[None]:
    """One query is not worth waking threads for: on a busy machine they cost it tens of milliseconds.

    OpenMP keeps this number for each calling thread, so searches beside this one are not disturbed.
    """
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(n)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _open_part(store: Store, folder: str, name: str, quantizer_sha256: str) -> Any:
    path = f"{folder}/parts/{name}.faiss"
    record = read_part_record(store, folder, name)
    if record is None:
        raise CorruptMemoryError(f"{store.root}/{folder}/parts/{name}.json is missing: build the index again")
    if record.quantizer_sha256 != quantizer_sha256:
        raise CorruptMemoryError(
            f"{store.root}/{path} was filled with quantizer {record.quantizer_sha256[:12]}, this index has "
            f"{quantizer_sha256[:12]}: build the index again"
        )
    try:
        size = store.size(path)
    except FileNotFoundError:
        raise CorruptMemoryError(f"{store.root}/{path} is missing: run verify, or build the index again") from None
    if size != record.bytes:
        raise CorruptMemoryError(
            f"{store.root}/{path} has {size:,} bytes, its record says {record.bytes:,}: run verify, "
            "or build the index again"
        )
    return read_faiss(store.fetch(path), f"{store.root}/{path}", faiss.IO_FLAG_MMAP)


def _ivf_of(index: Any) -> Any:
    return faiss.downcast_index(faiss.extract_index_ivf(index))


def _scan(ivf: Any, queries: Scores, k: int, list_scores: Scores, lists: Ids) -> tuple[Scores, Ids]:
    """Scan given lists of one part. The Python wrapper takes no parameters; the C++ call is safe between threads."""
    n, nprobe = lists.shape
    scores = np.empty((n, k), np.float32)
    ids = np.empty((n, k), np.int64)
    pointer = faiss.swig_ptr
    lists, list_scores = np.ascontiguousarray(lists), np.ascontiguousarray(list_scores)
    ivf.search_preassigned_c(
        n,
        pointer(queries),
        k,
        pointer(lists),
        pointer(list_scores),
        pointer(scores),
        pointer(ids),
        False,
        faiss.SearchParametersIVF(nprobe=nprobe),
        None,
    )
    return scores, ids
