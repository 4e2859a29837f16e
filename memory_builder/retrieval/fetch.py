"""Read the pairs of a piece with their pictures from their sources, each source in one pass."""

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from memory_builder.base.prefetch import map_ahead
from memory_builder.base.runner import available_threads
from memory_builder.base.types import split_ids
from memory_builder.memory import Memory
from memory_builder.model.images import DAMAGE, FORMATS, decode_image, thumbnail
from memory_builder.readers.fetch import CHANGED, Missing, PictureRef, read_pictures
from memory_builder.readers.link_policy import LinkPolicy
from memory_builder.retrieval.chosen import Pair, claims_of
from memory_builder.retrieval.copies.glyph import glyph_of
from memory_builder.retrieval.copies.miniature import miniature_of
from memory_builder.storage.store import sha256

AHEAD = 256
"""Pictures fetched and checked ahead of use."""
THUMBNAIL = 96
"""Thumbnail size in pixels."""
SUFFIXES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif", "AVIF": "avif"}
SUFFIXES |= {"MPO": "jpg"}  # Pillow's name of a phone's JPEG with more pictures appended
NO_PICTURE = "no picture any more"


def read_piece_pairs(piece: pa.Table, memory: Memory, policy: LinkPolicy, *, decode_all: bool) -> Iterator[Pair]:
    """Read the pairs of a piece, in order of their ids.

    Args:
        piece: a table of ``chosen.read_piece``.
        policy: links that may be read.
        decode_all: decode all pictures, not only those on the page.

    Raises:
        SourceError: a source exists but cannot be read.
    """
    with ThreadPoolExecutor(available_threads()) as threads:
        yield from map_ahead(partial(_checked, decode_all=decode_all), _fetch(piece, memory, policy), threads, AHEAD)


_Fetched = tuple[int, list[tuple[int, str, float]], dict[str, Any], bool, bytes | Missing]


def _fetch(piece: pa.Table, memory: Memory, policy: LinkPolicy) -> Iterator[_Fetched]:
    claims = dict(claims_of(piece))
    ids, shown = piece["id"].to_numpy(), piece["shown"].to_pylist()
    first = 0
    for of_source in np.split(ids, np.flatnonzero(np.diff(split_ids(ids)[0])) + 1):
        rows = memory.metadata(of_source).to_pylist()
        refs = [PictureRef.of(row) for row in rows]
        source = memory.source(int(of_source[0]))
        for which, picture in _in_order(read_pictures(source, refs, policy, memory.image_key)):
            row_id = int(of_source[which])
            yield row_id, claims[row_id], rows[which], shown[first + which], picture
        first += len(of_source)


def _in_order(pictures: Iterator[tuple[int, bytes | Missing]]) -> Iterator[tuple[int, bytes | Missing]]:
    """Reorder by position, holding back early ones. A shard stores pairs in the order of their rows."""
    waiting: dict[int, bytes | Missing] = {}
    turn = 0
    for which, picture in pictures:
        waiting[which] = picture
        while turn in waiting:
            yield turn, waiting.pop(turn)
            turn += 1


def _checked(fetched: _Fetched, *, decode_all: bool) -> Pair:
    """Check a picture's hash against the row's, and decode it if needed."""
    row_id, claims, metadata, shown, picture = fetched
    pair = partial(Pair, id=row_id, claims=claims, metadata=metadata, shown=shown)
    if isinstance(picture, Missing):
        return pair(picture=picture)
    digest = sha256(picture)
    if metadata["sha256"] not in (None, digest):  # for URLs too: vector and caption are of another picture
        return pair(picture=Missing(CHANGED))
    try:
        with Image.open(io.BytesIO(picture), formats=FORMATS) as image:
            pair = partial(pair, picture=picture, sha256=digest, suffix=SUFFIXES[image.format or ""])
        if not decode_all and not shown:
            return pair()
        decoded = decode_image(picture)
    except (*DAMAGE, Image.DecompressionBombError):  # of an imported memory, whose pictures were never decoded
        return partial(Pair, id=row_id, claims=claims, metadata=metadata, shown=shown)(picture=Missing(NO_PICTURE))
    pair = partial(pair, thumbnail=thumbnail(decoded, THUMBNAIL))
    return pair(glyph=glyph_of(decoded), miniature=miniature_of(decoded)) if decode_all else pair()
