"""Read request bodies up to a limit, and parse them without trust."""

import io
import math
import mmap
from typing import Any

import numpy as np
import numpy.typing as npt
from fastapi import HTTPException, Request
from numpy.lib import format as npy
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from cluster.spool import CHUNK_BYTES, Spool
from cluster.wire import Question
from memory_builder.errors import UsageError

MAX_VALUES = 2_000_000
"""Limit of values in one JSON body; larger arrays are sent as .npy to /bulk."""


async def read_body(request: Request, body: Spool, max_bytes: int) -> None:
    """Read the body up to a limit.

    Raises:
        HTTPException: 413, the body is too long.
        NoRoomError: the spool is full.
    """
    length = request.headers.get("content-length", "")
    if not (length.isascii() and length.isdigit() and int(length[:20]) > max_bytes):
        waiting = bytearray()
        async for chunk in request.stream():
            waiting += chunk
            if body.n_bytes + len(waiting) > max_bytes:
                break
            if len(waiting) >= CHUNK_BYTES:
                await run_in_threadpool(body.write, waiting)
                waiting = bytearray()
        else:
            await run_in_threadpool(body.write, waiting)
            return
    raise HTTPException(413, f"a request of more than {max_bytes:,} bytes: split it")


def parse_question(body: bytes) -> Question:
    """Parse the JSON of ``POST /search``. Slow for long bodies: do not call it in the event loop.

    Raises:
        UsageError: the body is invalid; HTTPException: 413, it has too many values.
    """
    if body.count(b",") + body.count(b"[") > MAX_VALUES:
        raise HTTPException(413, f"JSON of more than {MAX_VALUES:,} values: send vectors as .npy to /bulk/search")
    try:
        return Question.model_validate_json(body, strict=True)
    except ValidationError as error:
        raise UsageError(describe_faults(error.errors(include_url=False, include_context=False))) from None


def describe_faults(faults: Any, n_shown: int = 10) -> str:
    """Format pydantic's errors in one line."""
    shown = [f"{'.'.join(map(str, one['loc']))[:200] or 'body'}: {one['msg'][:300]}" for one in faults[:n_shown]]
    return "; ".join(shown) + ("; …" if len(faults) > n_shown else "")


def parse_array(body: bytes | mmap.mmap, kinds: str) -> npt.NDArray[Any]:
    """Parse a .npy body of one or two dimensions and these dtype kinds; its length must match its header.

    The array is a view of the body.

    Raises:
        UsageError: the body is something else.
    """
    stream: Any = io.BytesIO(body) if isinstance(body, bytes) else body
    try:
        version = npy.read_magic(stream)
        read_head = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, is_fortran, dtype = read_head(stream)
    except Exception as error:  # numpy parses the header with Python's parser, which may raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UsageError(f"the body is not a .npy file: {reason}") from None
    if dtype.kind not in kinds or (dtype.kind == "u" and dtype.itemsize == 8 and "f" not in kinds):
        raise UsageError(f"the body holds {str(dtype)[:100]}: expected numbers of another kind")
    if len(shape) > 2 or any(type(n) is not int or n < 0 for n in shape):
        raise UsageError(f"the body is not a .npy file of one or two dimensions: its shape is {str(shape)[:100]}")
    if len(body) - stream.tell() != math.prod(shape) * dtype.itemsize:
        raise UsageError(f"the body is not a .npy file: {str(shape)[:100]} of {dtype} does not match its length")
    return np.ndarray(shape, dtype, body, stream.tell(), order="F" if is_fortran else "C")
