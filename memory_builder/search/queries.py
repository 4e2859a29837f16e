"""Encode queries: texts and pictures through the memory's model; vectors are normalized."""

from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from memory_builder.base.types import Scores
from memory_builder.errors import UsageError
from memory_builder.model.encoder import Encoder
from memory_builder.model.images import BadImageError, decode_image, to_rgb

BATCH = 256
"""Queries encoded at a time."""
DECODE_LOCK = Lock()
"""Allows one decode at a time: a large query picture takes hundreds of megabytes."""
Picture = str | Path | bytes | Image.Image
"""Path of a file, encoded bytes, or a decoded image."""


def query_vectors(
    text: str | Sequence[str] | None,
    image: Picture | Sequence[Picture] | None,
    vectors: npt.ArrayLike | None,
    *,
    encoder: Callable[[], Encoder],
    d: int,
) -> tuple[str | None, Scores]:
    """(query modality, None for bare vectors; f32[q, d] unit rows). ``encoder`` is called only for texts and pictures.

    Raises:
        UsageError: none or several of the three are given, or one is not a valid query.
    """
    if sum(query is not None for query in (text, image, vectors)) != 1:
        raise UsageError("give exactly one of text, image and vectors")
    if vectors is not None:
        return None, _unit_rows(vectors, d)
    side = "text" if text is not None else "image"
    given: Any = text if text is not None else image
    several = isinstance(given, Sequence) and not isinstance(given, str | bytes)
    queries = list(given) if several else [given]
    if not queries:
        raise UsageError(f"no {side} to search with: the list is empty")
    if side == "text" and not all(isinstance(query, str) for query in queries):
        raise UsageError(f"text queries are strings, not {queries!r:.100}")
    model = encoder()
    encode: Callable[[Any], Any] = model.encode_texts if side == "text" else lambda pictures: _encode(model, pictures)
    batches = [encode(queries[i : i + BATCH]) for i in range(0, len(queries), BATCH)]
    return side, np.concatenate(batches).astype(np.float32)


def _encode(model: Encoder, pictures: Sequence[Picture]) -> Any:
    return model.encode_images(np.stack([_pixels(model, picture) for picture in pictures]))


def _pixels(model: Encoder, picture: Picture) -> Any:
    with DECODE_LOCK:
        return model.preprocess(_picture(picture))


def _picture(picture: Picture) -> Image.Image:
    if isinstance(picture, Image.Image):
        return to_rgb(picture)
    try:
        return decode_image(picture if isinstance(picture, bytes) else Path(picture).read_bytes())
    except BadImageError as error:
        raise UsageError(f"cannot use the query image: {error}") from None
    except (OSError, TypeError) as error:
        raise UsageError(f"cannot read the query image: {error}") from None


def _unit_rows(vectors: npt.ArrayLike, d: int) -> Scores:
    try:
        given = np.atleast_2d(np.asarray(vectors))
    except (TypeError, ValueError) as error:
        raise UsageError(f"query vectors are not numbers: {error}") from None
    if given.dtype.kind not in "fiu":
        raise UsageError(f"query vectors are not numbers but {given.dtype}")
    if given.ndim != 2 or given.shape[1] != d:
        raise UsageError(f"query vectors have shape {list(given.shape)}, this memory takes [q, {d}]")
    queries = given.astype(np.float64)  # wide enough for the squares of any float32
    with np.errstate(over="ignore", invalid="ignore"):  # checked below
        norms = np.linalg.norm(queries, axis=1, keepdims=True)
    if not np.isfinite(norms).all() or not norms.all():
        raise UsageError("query vectors hold NaN, infinity or only zeros")
    units: Scores = (queries / norms).astype(np.float32)
    return units
