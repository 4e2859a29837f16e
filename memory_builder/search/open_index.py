"""An index opened for search: its parts scanned together, candidates re-ranked exactly from the float16 vectors."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from memory_builder.ann.fastscan import ServeFormat, to_fastscan
from memory_builder.ann.inverted_lists import Codes, read_list
from memory_builder.ann.kmeans import transformed
from memory_builder.ann.parts import PART_AGAIN, PartRecord, open_trained, part_record, read_faiss, trained_record
from memory_builder.base.types import NO_ROW, Ids, Modality, Scores
from memory_builder.catalog.row_bitmap import RowBitmap
from memory_builder.catalog.rows import Rows, are_rows
from memory_builder.errors import REPAIR, CorruptMemoryError, UsageError
from memory_builder.search.filtered import is_few, is_selective, score_all, widen
from memory_builder.search.scores import best_of, exact_scores
from memory_builder.search.tuned import tuned_for
from memory_builder.storage.store import Store

RERANK_BYTES = 64 << 20
OVER_QUERIES = 3


ScanCodes = Callable[[Scores, int, int, RowBitmap | None], tuple[Scores, Ids]]
"""Signature of ``OpenIndex.scan_codes``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchParams:
    """Search parameters of an index."""

    nprobe: int
    """Inverted lists to scan."""
    refine: int
    """Candidates re-ranked with exact vectors for each of the k rows; 0 keeps the scores of the codes."""


class OpenIndex:
    """The parts of one index, memory-mapped, or in RAM as FastScan; safe to search from several threads.

    Coarse quantization runs once a query, whatever the number of parts.

    Args:
        store: the memory's storage.
        folder: the index's folder in it.
        parts: names of the parts.
        serve_format: layout of the codes in RAM.
        remote_scan: scans the parts in other processes; without it, they are opened in this one.

    Raises:
        CorruptMemoryError: a file is missing or damaged, or a part belongs to another index.
        UsageError: the index cannot be served in this format.
    """

    def __init__(
        self,
        store: Store,
        folder: str,
        parts: Sequence[str],
        *,
        serve_format: ServeFormat = "plain",
        remote_scan: ScanCodes | None = None,
    ) -> None:
        self._path = f"{store.root}/{folder}"
        self._trained = open_trained(store, folder)
        trained_as = trained_record(store, folder)
        records = [_read_record(store, folder, name, trained_as.sha256) for name in parts]
        self.ordinals = sorted(ordinal for record in records for ordinal in record.ordinals)
        """Ordinals of the shards whose rows are indexed."""
        self.n_rows = sum(record.n_rows for record in records)
        self.n_tuned = self.n_rows if trained_as.n_rows is None else trained_as.n_rows
        """Number of indexed rows at training and tuning."""
        self._remote_scan = remote_scan
        self._parts = [] if remote_scan else [_open_part(store, folder, record, self._trained) for record in records]
        self.is_exact = not isinstance(self._trained, faiss.IndexPreTransform | faiss.IndexIVF)
        if not self.is_exact:
            self._ivf = _ivf_of(self._trained)
            self._part_ivfs = [_ivf_of(part) for part in self._parts]
        if serve_format == "fastscan" and not remote_scan:
            if self.is_exact:
                raise UsageError(f"{self._path} cannot be served as fastscan: it is exact and has no codes; use plain")
            self._part_ivfs = [to_fastscan(ivf, self._path) for ivf in self._part_ivfs]
        for ivf in () if self.is_exact else self._part_ivfs:
            ivf.parallel_mode = OVER_QUERIES  # faiss's default scans preassigned lists with one thread

    @property
    def n_lists(self) -> int:
        return 1 if self.is_exact else int(self._ivf.nlist)

    @property
    def code_bytes(self) -> int:
        """Bytes scanned for each row."""
        return int(self._trained.d) * 4 if self.is_exact else int(self._ivf.code_size)

    @property
    def has_exact_codes(self) -> bool:
        """Whether scores of codes are exact, so that no re-ranking is needed."""
        transformed = isinstance(self._trained, faiss.IndexPreTransform)  # it may have dropped dimensions
        return self.is_exact or (isinstance(self._ivf, faiss.IndexIVFFlat) and not transformed)

    def list_sizes(self) -> npt.NDArray[np.int64]:
        """i64[nlist] number of rows in each inverted list, over all parts."""
        if self.is_exact:
            return np.array([self.n_rows])
        by_part = [[ivf.invlists.list_size(i) for i in range(self.n_lists)] for ivf in self._part_ivfs]
        sizes: npt.NDArray[np.int64] = np.array(by_part, np.int64).sum(axis=0)
        return sizes

    def read_list(self, number: int) -> tuple[Codes, Ids]:
        """Read one inverted list over all parts: codes u8[n, code_size], ids i64[n]."""
        codes, ids = zip(*(read_list(ivf, number) for ivf in self._part_ivfs), strict=True)
        return np.concatenate(codes), np.concatenate(ids)

    def probe(self, queries: Scores, nprobe: int) -> tuple[Scores, Scores, Ids]:
        """f32[q, d] → (transformed queries f32[q, d'], list scores f32[q, nprobe], lists i64[q, nprobe])."""
        queries = transformed(self._trained, queries)
        quantizer = faiss.downcast_index(self._ivf.quantizer)
        params = (
            faiss.SearchParametersHNSW(efSearch=ef_search(nprobe)) if isinstance(quantizer, faiss.IndexHNSW) else None
        )
        scores, lists = quantizer.search(queries, nprobe, params=params)
        return queries, scores, lists

    def centroids(self, lists: Ids) -> Scores:
        """i64[n] lists → f32[n, d'] centroids, in the space of ``probe``'s queries."""
        vectors: Scores = faiss.downcast_index(self._ivf.quantizer).reconstruct_batch(lists)
        return vectors

    def candidates(self, queries: Scores, k: int, nprobe: int, allowed: RowBitmap | None = None) -> tuple[Scores, Ids]:
        """f32[q, d] unit rows → scores f32[q, k] by code, ids i64[q, k], best first; short results padded with -1.

        Retrieves only rows of ``allowed``, if given.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        with _threads(1) if len(queries) == 1 else nullcontext():
            if allowed is None:
                return self.scan_codes(queries, k, nprobe)
            if is_selective(allowed, k, self.n_rows):
                return self.scan_codes(queries, k, nprobe, allowed)
            return widen(lambda block, width: self.scan_codes(block, width, nprobe), queries, k, self.n_rows, allowed)

    def scan_codes(self, queries: Scores, k: int, nprobe: int, allowed: RowBitmap | None = None) -> tuple[Scores, Ids]:
        """Retrieve ``candidates`` in one pass over the lists, with a selector if ``allowed`` is given."""
        if self._remote_scan is not None:
            return self._remote_scan(queries, k, nprobe, allowed)
        selector = None if allowed is None else allowed.selector
        best = faiss.ResultHeap(len(queries), k, keep_max=True)
        if self.is_exact:
            for part in self._parts:  # not shared, since faiss writes into the parameters
                best.add_result(*part.search(queries, k, params=faiss.SearchParameters(sel=selector)))
        else:
            queries, list_scores, lists = self.probe(queries, min(nprobe, self.n_lists))
            for ivf in self._part_ivfs:
                best.add_result(*_scan_lists(ivf, queries, k, list_scores, lists, selector))
        best.finalize()
        return best.D, best.I

    def search(
        self,
        queries: Scores,
        k: int,
        params: SearchParams,
        rows: Rows,
        modality: Modality,
        allowed: RowBitmap | None = None,
    ) -> tuple[Scores, Ids]:
        """f32[q, d] unit rows → scores f32[q, k], ids i64[q, k], best first; padded with -1 and -inf.

        Retrieves only rows of ``allowed``, if given; few of them are all scored exactly. Memory stays bounded: queries
        are searched in blocks whose candidates' vectors fit into RERANK_BYTES.
        """
        if queries.shape[1] != self._trained.d:
            problem = f"is of vectors of width {self._trained.d}, the memory's have {queries.shape[1]}"
            raise CorruptMemoryError(f"{self._path}/trained.faiss {problem}", REPAIR)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        ids = np.full((len(queries), k), NO_ROW, np.int64)
        wanted = min(k * max(1, params.refine), self.n_rows if allowed is None else len(allowed))
        if wanted and allowed is not None and is_few(allowed, self.n_rows, rows):
            best_scores, best = score_all(queries, k, rows, modality, allowed)
            scores[:, : best.shape[1]], ids[:, : best.shape[1]] = best_scores, best
            return scores, ids
        rerank = bool(params.refine) and not self.has_exact_codes
        block = max(1, RERANK_BYTES // (4 * rows.d * max(1, wanted))) if rerank else max(1, len(queries))
        for start in range(0, len(queries) if wanted else 0, block):
            block_rows = slice(start, start + block)
            candidate_scores, candidates = self.candidates(queries[block_rows], wanted, params.nprobe, allowed)
            if not are_rows(candidates[candidates != NO_ROW], rows.commits).all():
                raise CorruptMemoryError(f"a part of {self._path} names rows that the memory does not have", REPAIR)
            if rerank:
                candidate_scores = exact_scores(queries[block_rows], candidates, rows, modality)
            best_scores, best = best_of(candidate_scores, candidates, k)
            scores[block_rows, : best.shape[1]], ids[block_rows, : best.shape[1]] = best_scores, best
        return scores, ids


def tuned_params(tuned: dict[str, dict[str, Any]], query_modality: str | None, index: OpenIndex) -> SearchParams:
    """Search parameters tuned for queries of a modality; for bare vectors (None), the greater ones of both."""
    measured = tuned_for(tuned, query_modality)
    if not measured:  # too few rows to tune on
        return SearchParams(nprobe=index.n_lists, refine=0 if index.has_exact_codes else 16)
    return SearchParams(nprobe=max(one["nprobe"] for one in measured), refine=max(one["refine"] for one in measured))


def ef_search(nprobe: int) -> int:
    """efSearch for retrieving nprobe centroids from an HNSW graph."""
    return max(64, 2 * nprobe)


@contextmanager
def _threads(n: int) -> Iterator[None]:
    """Limit faiss's threads: for one query, waking them costs tens of milliseconds on a busy machine.

    OpenMP keeps this number for each calling thread, so concurrent searches are not affected.
    """
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(n)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _read_record(store: Store, folder: str, name: str, quantizer_sha256: str) -> PartRecord:
    record = part_record(store, folder, name)
    if record.quantizer_sha256 != quantizer_sha256:
        raise CorruptMemoryError(
            f"{store.root}/{folder}/parts/{name}.faiss was filled with quantizer {record.quantizer_sha256[:12]}, this "
            f"index has {quantizer_sha256[:12]}: build the index again"
        )
    return record


def _open_part(store: Store, folder: str, record: PartRecord, trained: Any) -> Any:
    path = f"{folder}/parts/{record.name}.faiss"
    try:
        size = store.size(path)
    except FileNotFoundError:
        raise CorruptMemoryError(f"{store.root}/{path} is missing", PART_AGAIN) from None
    if size != record.bytes:
        raise CorruptMemoryError(
            f"{store.root}/{path} has {size:,} bytes, its record says {record.bytes:,}", PART_AGAIN
        )
    part = read_faiss(store.fetch(path), f"{store.root}/{path}", faiss.IO_FLAG_MMAP)
    shape, expected = shape_of(part), shape_of(trained) | {"rows": record.n_rows}
    wrong = [f"{name} {shape.get(name)}, not {value}" for name, value in expected.items() if shape.get(name) != value]
    if wrong or shape.keys() != expected.keys():
        problem = wrong[0] if wrong else "it is of another kind"
        raise CorruptMemoryError(f"{store.root}/{path} is not a part of this index ({problem})", PART_AGAIN)
    return part


def shape_of(index: Any) -> dict[str, Any]:
    """Properties that two indexes must share to be searched as one, by name, with those of an IVF index's lists."""
    shape = {"kind": type(index).__name__, "width": index.d, "metric": index.metric_type, "rows": int(index.ntotal)}
    if isinstance(index, faiss.IndexPreTransform):
        steps = [faiss.downcast_VectorTransform(index.chain.at(i)) for i in range(index.chain.size())]
        shape["transforms"] = [(type(step).__name__, step.d_in, step.d_out) for step in steps]
    if isinstance(index, faiss.IndexPreTransform | faiss.IndexIVF):
        ivf = _ivf_of(index)
        shape |= {"lists' kind": type(ivf).__name__, "lists' width": ivf.d, "lists": ivf.nlist, "code": ivf.code_size}
        shape |= {"lists' metric": ivf.metric_type}
    return shape


def _ivf_of(index: Any) -> Any:
    return faiss.downcast_index(faiss.extract_index_ivf(index))


def _scan_lists(
    ivf: Any, queries: Scores, k: int, list_scores: Scores, lists: Ids, selector: Any
) -> tuple[Scores, Ids]:
    """Scan preassigned lists of one part; the Python wrapper takes no parameters, and the C++ call is thread-safe."""
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
        faiss.SearchParametersIVF(nprobe=nprobe, sel=selector),
        None,
    )
    return scores, ids
