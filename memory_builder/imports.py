"""Adopt published embeddings: folders of ``img_emb/*.npy``, ``text_emb/*.npy`` and ``metadata/*.parquet``.

This is how clip-retrieval writes them and LAION publishes them. What stands behind ``img_emb_`` in a file's name (its
number, of any width) is a shard, in the order of the names, which is also the order of the row numbers of an index
published with them. No row is left out: one without a usable vector stays blank, so that those numbers stay right.
"""

import io
import posixpath
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from memory_builder.encoder import Vectors
from memory_builder.errors import SourceError
from memory_builder.manifest import Commit
from memory_builder.plan import Shard, Source
from memory_builder.retry import is_local, open_filesystem, uri_of
from memory_builder.shard_files import commit_shard
from memory_builder.shards.tables import python_rows
from memory_builder.storage import Store, sha256, version_of
from memory_builder.tables import metadata_table, read_npy, read_parquet
from memory_builder.uris import Piece, join_uri, split_uri

FOLDERS = {"image": ("img_emb", ".npy"), "text": ("text_emb", ".npy"), "metadata": ("metadata", ".parquet")}
SIDES: tuple[str, ...] = ("image", "text")
UNIT_TOLERANCE = 1e-2
"""Published float16 rows are off by some 1e-3."""
KEY_COLUMNS = ("image_path", "key", "__key__")
BLOCK_ROWS = 1 << 16


def find_embeddings(root: str) -> list[Source]:
    """The shards of a folder of embeddings, in order.

    Raises:
        SourceError: there are none, or a number lacks one of the kinds of file that others have.
    """
    fs, path = open_filesystem(root)
    kinds = {kind: _numbered(fs, path, kind) for kind in FOLDERS}
    kinds = {kind: files for kind, files in kinds.items() if files}
    if not kinds.keys() & {"image", "text"}:
        raise SourceError(f"no embeddings at {root}: expected img_emb/img_emb_0.npy, text_emb/… and metadata/….parquet")
    names = set().union(*kinds.values())
    for kind, files in kinds.items():
        if missing := sorted(names - files.keys()):
            raise SourceError(
                f"{root} has no {FOLDERS[kind][0]} for {', '.join(missing[:5])}{', …' if len(missing) > 5 else ''}, "
                "which its other folders have: fetch them, or move the others away"
            )
    base = uri_of(fs, path)
    sources = []
    for name in sorted(names):
        infos = [files[name] for files in kinds.values()]
        uri = join_uri(base, Piece(embeddings=name))
        sources.append(Source(uri=uri, bytes=sum(info["size"] for info in infos), etag=_etag(infos)))
    return sources


def embeddings_etag(uri: str) -> str:
    """What changes when a file of this shard does; FileNotFoundError when all are gone."""
    root, piece = split_uri(uri)
    fs, path = open_filesystem(root)
    infos = [fs.info(file) for file in _files(fs, path, piece).values()]
    if not infos:
        raise FileNotFoundError(uri)
    return _etag(infos)


def _etag(infos: list[dict[str, Any]]) -> str:
    versions = [[info["size"], version_of(info)] for info in infos]
    return sha256(repr(versions).encode())[:32]


def _numbered(fs: Any, path: str, kind: str) -> dict[str, dict[str, Any]]:
    """What stands behind the folder's name in its files' names → what the filesystem says of the file."""
    folder, suffix = FOLDERS[kind]
    try:
        infos = fs.ls(f"{path}/{folder}", detail=True)
    except FileNotFoundError:
        return {}
    found = {}
    for info in infos:
        name = re.fullmatch(rf"{folder}_?(.+){re.escape(suffix)}", posixpath.basename(info["name"]))
        if name is not None and info["type"] == "file":
            found[name[1]] = info
    return found


def _files(fs: Any, path: str, piece: Piece) -> dict[str, str]:
    """Kind → path of the files of one shard that are there."""
    found: dict[str, str] = {}
    for kind, (folder, suffix) in FOLDERS.items():
        for separator in ("_", ""):
            file = f"{path}/{folder}/{folder}{separator}{piece.embeddings}{suffix}"
            if fs.exists(file):
                found.setdefault(kind, file)
    return found


def embeddings_width(source: Source) -> int:
    """d of a shard's vectors."""
    root, piece = split_uri(source.uri)
    fs, path = open_filesystem(root)
    files = _files(fs, path, piece)
    return int(_load(fs, files.get("image") or files["text"]).shape[1])


def import_shard(shard: Shard, *, store: Store, d: int, column_types: dict[str, str], hash_of_config: str) -> Commit:
    """Copy one shard of published embeddings into a memory and commit it.

    Raises:
        SourceError: files are gone, of another width, hold no vectors, or do not have the same number of rows.
    """
    started = time.perf_counter()
    root, piece = split_uri(shard.uri)
    fs, path = open_filesystem(root)
    files = _files(fs, path, piece)
    sides = {side: _load(fs, files[side]) for side in SIDES if side in files}
    table = read_parquet(fs.cat_file(files["metadata"])) if "metadata" in files else None
    n = _agree(files, sides, table, d)
    notes: dict[str, int] = {}
    vectors: dict[str, Vectors] = {side: np.zeros((n, d), np.float16) for side in SIDES}
    vectors |= {side: _unit(array, side, notes) for side, array in sides.items()}
    has = {side: np.asarray(vectors[side].any(axis=1)) for side in SIDES}
    rows = _rows(table, n, str(piece.embeddings), has, notes)
    return commit_shard(
        store,
        shard,
        images=vectors["image"],
        texts=vectors["text"],
        metadata=metadata_table(list(rows), column_types),
        rejects=[],
        partial=None,
        hash_of_config=hash_of_config,
        seconds={"total": time.perf_counter() - started},
        notes=notes,
    )


def _load(fs: Any, file: str) -> npt.NDArray[Any]:
    try:
        array: Any = read_npy(Path(file), mapped=True) if is_local(fs) else read_npy(io.BytesIO(fs.cat_file(file)))
    except FileNotFoundError:
        raise
    except (ValueError, EOFError, OSError) as error:
        raise SourceError(f"{file} cannot be read as an array of numbers ({error}): fetch it again") from None
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind != "f":
        shape = f"{array.dtype}{list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
        raise SourceError(f"{file} holds {shape}: expected float16 or float32 of [rows, width]")
    return array


def _agree(files: dict[str, str], sides: dict[str, npt.NDArray[Any]], table: pa.Table | None, d: int) -> int:
    """How many rows they all have."""
    rows = {files[side]: len(array) for side, array in sides.items()}
    if table is not None:
        rows[files["metadata"]] = table.num_rows
    if len(set(rows.values())) != 1:
        counts = ", ".join(f"{file} has {n:,} rows" for file, n in rows.items())
        raise SourceError(f"rows do not pair up: {counts}. Fetch the files again, or find those that belong together")
    for side, array in sides.items():
        if array.shape[1] != d:
            raise SourceError(f"{files[side]} holds vectors of width {array.shape[1]}, the memory's are {d}")
    return next(iter(rows.values()))


def _unit(array: npt.NDArray[Any], side: str, notes: dict[str, int]) -> Vectors:
    """[n, d] of any float → f16[n, d] of unit rows; a row that is not finite, or zero, is left blank."""
    vectors = np.zeros(array.shape, np.float16)
    for start in range(0, len(array), BLOCK_ROWS):
        block = np.array(array[start : start + BLOCK_ROWS], np.float32)
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is what we look for
            lengths = np.linalg.norm(block, axis=1)  # f32[b]
        usable = np.isfinite(lengths) & (lengths > 0)
        off = usable & (np.abs(lengths - 1) > UNIT_TOLERANCE)
        block[off] /= lengths[off, None]
        vectors[start : start + BLOCK_ROWS][usable] = block[usable]
        for note, n in ((f"{side} vectors normalised", off.sum()), (f"{side} vectors blank", (~usable).sum())):
            if n:
                notes[note] = notes.get(note, 0) + int(n)
    return vectors


def _rows(
    table: pa.Table | None, n: int, name: str, has: dict[str, npt.NDArray[Any]], notes: dict[str, int]
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(fixed columns, everything else the metadata says) of every row; cells that cannot be read count as absent."""
    key = next((column for column in KEY_COLUMNS if table is not None and column in table.column_names), None)
    given = python_rows(table) if table is not None else [({}, None) for _ in range(n)]
    for i, (fields, fault) in enumerate(given):
        if fault:
            notes[fault] = notes.get(fault, 0) + 1
        own_key = fields.pop(key, None) if key else None
        caption = fields.pop("caption", None)
        found = {
            "key": f"{name}/{i:09d}" if own_key is None else str(own_key),
            "caption": caption if isinstance(caption, str) else None,
            "width": _size(fields, "width"),
            "height": _size(fields, "height"),
            "sha256": None,
            "member": None,
            "has_image": bool(has["image"][i]),
            "has_text": bool(has["text"][i]),
        }
        yield found, fields


def _size(fields: dict[str, Any], side: str) -> int | None:
    """A picture's width or height, taken out of what the metadata says; what is no such number stays there."""
    for name in (side, f"original_{side}"):
        value = fields.pop(name, None)
        if isinstance(value, int | float) and 0 <= value < 2**31:
            return int(value)
        if value is not None:
            fields[name] = value
            break
    return None
