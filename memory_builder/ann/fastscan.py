"""Layout of an open index's codes in memory: as on disk, or in FastScan's blocks of 32 for SIMD."""

from typing import Any, Literal, get_args

import faiss

from memory_builder.errors import UsageError

ServeFormat = Literal["plain", "fastscan"]


def check_serve_format(serve_format: str) -> ServeFormat:
    """Return the format of this name; UsageError if it is unknown."""
    for known in get_args(ServeFormat):
        if serve_format == known:
            return known  # type: ignore[no-any-return]
    raise UsageError(f"serve_format {serve_format!r}: expected {' or '.join(get_args(ServeFormat))}")


def to_fastscan(ivf: Any, path: str) -> Any:
    """Copy an IVF part into a FastScan index in RAM, with the same row ids. Scores are quantized to bytes.

    Raises:
        UsageError: FastScan does not support its codes.
    """
    if isinstance(ivf, faiss.IndexIVFRaBitQ):
        return faiss.IndexIVFRaBitQFastScan(ivf)
    if isinstance(ivf, faiss.IndexIVFPQ) and ivf.pq.nbits == 4:
        return faiss.IndexIVFPQFastScan(ivf)
    raise UsageError(f"{path} cannot be served as fastscan: {_reason(ivf)}. Build it with a key such as IVF1024,PQ32x4")


def _reason(ivf: Any) -> str:
    if isinstance(ivf, faiss.IndexIVFPQ):
        return f"its PQ codes have {ivf.pq.nbits} bits, and FastScan looks up 4 bits at a time in a register"
    return f"FastScan supports 4-bit PQ and RaBitQ codes, not those of {type(ivf).__name__}"
