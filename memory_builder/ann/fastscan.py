"""How the codes of an open index lie in memory: as on disk, or in FastScan's blocks of 32, which SIMD scans at once."""

from typing import Any, Literal, get_args

import faiss

from memory_builder.errors import UsageError

ServeFormat = Literal["plain", "fastscan"]


def check_serve_format(serve_format: str) -> ServeFormat:
    """The format, if there is one of this name."""
    for known in get_args(ServeFormat):
        if serve_format == known:
            return known  # type: ignore[no-any-return]
    raise UsageError(f"serve_format {serve_format!r}: expected {' or '.join(get_args(ServeFormat))}")


def to_fastscan(ivf: Any, path: str) -> Any:
    """An IVF part → a FastScan copy of it in RAM, with the same row ids. Its scores are rounded to steps of a byte.

    Raises:
        UsageError: there is no FastScan for its codes.
    """
    if isinstance(ivf, faiss.IndexIVFRaBitQ):
        return faiss.IndexIVFRaBitQFastScan(ivf)
    if isinstance(ivf, faiss.IndexIVFPQ) and ivf.pq.nbits == 4:
        return faiss.IndexIVFPQFastScan(ivf)
    raise UsageError(f"{path} cannot be served as fastscan: {_reason(ivf)}. Build it with a key such as IVF1024,PQ32x4")


def _reason(ivf: Any) -> str:
    if isinstance(ivf, faiss.IndexIVFPQ):
        return f"its PQ codes have {ivf.pq.nbits} bits, and FastScan looks up 4 bits at a time in a register"
    return f"FastScan is for 4-bit PQ and for RaBitQ codes, not for those of {type(ivf).__name__}"
