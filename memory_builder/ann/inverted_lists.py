"""faiss's on-disk index: one file with the inverted lists, and a small one with the rest.

The lists are stored back to back, in order: the codes of all rows of a list, then their ids. Plain faiss opens it with
``faiss.read_index(folder + "/populated.index", faiss.IO_FLAG_ONDISK_SAME_DIR)``; with IO_FLAG_MMAP too, searching it
would crash.
"""

from collections.abc import Iterable
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from memory_builder.base.types import Ids

POPULATED, LISTS = "populated.index", "merged_index.ivfdata"
ID_BYTES = 8

Codes = npt.NDArray[np.uint8]


def read_list(ivf: Any, number: int) -> tuple[Codes, Ids]:
    """Copy one inverted list: (codes u8[n, code_size], ids i64[n]); the file does not stay mapped."""
    lists = ivf.invlists
    n = lists.list_size(number)
    if not n:
        return np.zeros((0, ivf.code_size), np.uint8), np.zeros(0, np.int64)
    codes, ids = lists.get_codes(number), lists.get_ids(number)
    try:
        return (
            faiss.rev_swig_ptr(codes, n * ivf.code_size).reshape(n, ivf.code_size).copy(),
            faiss.rev_swig_ptr(ids, n).copy(),
        )
    finally:
        lists.release_codes(number, codes)
        lists.release_ids(number, ids)


def end_of_lists(ivf: Any) -> int:
    """End, in bytes, of the last inverted list of an index with lists on disk; 0 for other indexes.

    The lists are memory-mapped: reading past the end of a shorter file would kill the process.
    """
    lists = faiss.downcast_InvertedLists(ivf.invlists)
    if not isinstance(lists, faiss.OnDiskInvertedLists):
        return 0
    row_bytes = ivf.code_size + ID_BYTES
    spans = (lists.lists.at(number) for number in range(lists.lists.size()))
    return max((span.offset + span.capacity * row_bytes for span in spans if span.size), default=0)


def with_lists_on_disk(trained: Any, sizes: Ids) -> Any:
    """Give an empty IVF index lists of these sizes, i64[nlist], in the file LISTS; return the index.

    The index can only be written: the file is not opened.
    """
    ivf = faiss.downcast_index(faiss.extract_index_ivf(trained))
    lists = faiss.OnDiskInvertedLists(ivf.nlist, ivf.code_size, LISTS)
    n_rows = int(sizes.sum())
    lists.set_all_lists_sizes(faiss.swig_ptr(np.ascontiguousarray(sizes, np.uint64)))
    lists.totsize = n_rows * (ivf.code_size + ID_BYTES)
    ivf.replace_invlists(lists, True)
    lists.this.disown()  # the index owns them now
    ivf.ntotal = trained.ntotal = n_rows
    return trained


def with_lists_in_memory(trained: Any, lists: Iterable[tuple[Codes, Ids]]) -> Any:
    """Fill an empty IVF index with lists, (codes u8[n, code_size], ids i64[n]) each, in order; return the index."""
    ivf = faiss.downcast_index(faiss.extract_index_ivf(trained))
    n_rows = 0
    for number, (codes, ids) in enumerate(lists):
        if len(ids):
            ivf.invlists.add_entries(number, len(ids), faiss.swig_ptr(ids), faiss.swig_ptr(codes))
            n_rows += len(ids)
    ivf.ntotal = trained.ntotal = n_rows
    return trained
