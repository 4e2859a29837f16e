"""Find and read published embeddings: vectors and metadata that were computed elsewhere.

Three layouts are supported: folders ``img_emb/*.npy``, ``text_emb/*.npy`` and ``metadata/*.parquet``, as in
clip-retrieval, LAION and memories; ``.npy`` files side by side, as for autofaiss; parquet or lance tables with a
column of vectors.
"""

import io
import posixpath
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from memory_builder.base.arguments import shortened
from memory_builder.base.log import logger
from memory_builder.base.types import MODALITIES, Modality
from memory_builder.errors import SourceError
from memory_builder.readers.file_kinds import describe_passed_over
from memory_builder.readers.shard import Source
from memory_builder.readers.shard_uri import Piece, join_uri, split_uri
from memory_builder.readers.transport import open_plain
from memory_builder.readers.vector_tables import modality_of, open_lance, read_lance, split_vectors
from memory_builder.storage.filesystem import is_local, open_filesystem, uri_of
from memory_builder.storage.formats import read_npy, read_parquet
from memory_builder.storage.store import sha256, version_of

FOLDERS: dict[str, tuple[str, str]] = {
    "image": ("img_emb", ".npy"),
    "text": ("text_emb", ".npy"),
    "metadata": ("metadata", ".parquet"),
}
ROWS_A_SHARD = 1_000_000
"""Rows in a shard of a lance dataset."""
EXPECTED = (
    "expected img_emb/img_emb_0.npy, text_emb/… and metadata/….parquet, or .npy files side by side, or parquet or "
    "lance with a column of vectors"
)


@dataclass(slots=True)
class Published:
    """Vectors and metadata of one shard of published embeddings."""

    vectors: dict[Modality, npt.NDArray[Any]]
    """Modality → vectors [n, width] of any float type."""
    metadata: pa.Table | None
    files: dict[str, str]
    """Modality or ``metadata`` → path, for messages."""


def find_published(
    root: str, modality: Modality = "image", *, committed: Collection[str] | None = None
) -> list[Source]:
    """Find the shards in a folder of embeddings, in order of their files' names.

    Args:
        root: the folder, or one table or array.
        modality: the modality of vectors whose file name does not contain it.
        committed: names of the shards to take, if the folder is a memory; None: all.

    Raises:
        SourceError: the folder has no embeddings, or a shard lacks a kind of file that others have.
    """
    fs, path = open_filesystem(root)
    base = uri_of(fs, path)
    if path.rstrip("/").endswith(".lance"):
        return _lance_sources(base, modality)
    if fs.isfile(path):
        return [_flat_source(fs, posixpath.dirname(path), posixpath.basename(path), modality)]
    kinds = _folders(fs, path)
    names = sorted(posixpath.basename(info["name"].rstrip("/")) for info in _listed(fs, path))
    if kinds.keys() & {*MODALITIES}:
        if committed is None:
            _log_passed_over(root, _unused_files(fs, path, names, kinds))
        return _folder_sources(root, base, kinds, committed)
    for suffix in (".lance", ".npy", ".parquet"):
        taken = [name for name in names if name.endswith(suffix) and not name.startswith((".", "_"))]
        if taken:
            _log_passed_over(root, [name for name in names if name not in taken])
            if suffix == ".lance":
                return [source for name in taken for source in _lance_sources(f"{base}/{name}", modality)]
            return [_flat_source(fs, path, name, modality) for name in taken]
    raise SourceError(f"no embeddings at {root}: {EXPECTED}")


def _log_passed_over(root: str, names: list[str]) -> None:
    if names:
        logger.info(f"passed over in {root}: {describe_passed_over(names)}")


def _unused_files(fs: Any, path: str, names: list[str], kinds: Mapping[str, Mapping[str, dict[str, Any]]]) -> list[str]:
    """List the files that belong to no shard, beside and in the folders of the shards."""
    taken = {posixpath.normpath(info["name"]) for files in kinds.values() for info in files.values()}
    folders = sorted({posixpath.basename(posixpath.dirname(file)) for file in taken})
    inside = [
        f"{folder}/{posixpath.basename(info['name'].rstrip('/'))}"
        for folder in folders
        for info in _listed(fs, f"{path}/{folder}")
        if posixpath.normpath(info["name"]) not in taken and posixpath.basename(info["name"]) not in ("", folder)
    ]
    return [*(name for name in names if name not in folders), *inside]


def published_etag(uri: str) -> str:
    """Return the etag of a shard's files; FileNotFoundError if all are missing."""
    root, piece = split_uri(uri)
    fs, path = open_filesystem(root)
    if root.endswith(".lance"):
        return str(open_lance(root).version)
    if piece.vectors is not None:
        return _etag([fs.info(f"{path}/{piece.vectors}")])
    infos = [files[piece.embeddings] for files in _folders(fs, path).values() if piece.embeddings in files]
    if not infos:
        raise FileNotFoundError(uri)
    return _etag(infos)


def read_published(uri: str) -> Published:
    """Read the vectors and metadata of one shard.

    Raises:
        FileNotFoundError: all its files are missing.
        SourceError: a file does not hold vectors, or a table cannot be read.
    """
    root, piece = split_uri(uri)
    fs, path = open_filesystem(root)
    if root.endswith(".lance"):
        return _of_table(read_lance(root, piece.items), cast(Modality, piece.modality), root)
    if piece.vectors is not None:
        file = f"{path}/{piece.vectors}"
        if file.endswith(".npy"):
            modality = cast(Modality, piece.modality)
            return Published({modality: _load(fs, file)}, None, {modality: file})
        return _of_table(_read_table(fs, file), cast(Modality, piece.modality), file)
    files = {
        kind: listed[piece.embeddings]["name"]
        for kind, listed in _folders(fs, path).items()
        if piece.embeddings in listed
    }
    if not files:
        raise FileNotFoundError(uri)
    table = _read_table(fs, files["metadata"]) if "metadata" in files else None
    vectors = {modality: _load(fs, files[modality]) for modality in MODALITIES if modality in files}
    return Published(vectors, table, files)


def published_width(sources: Iterable[Source]) -> int:
    """Return the width of the vectors of the first shard that has any.

    Raises:
        SourceError: no shard has vectors.
    """
    for source in sources:
        for vectors in read_published(source.uri).vectors.values():
            if vectors.size:
                return int(vectors.shape[1])
    raise SourceError("the files hold no vectors")


def metadata_columns(uri: str) -> list[str] | None:
    """Return the names of the metadata columns of a shard; None without metadata."""
    root, piece = split_uri(uri)
    fs, path = open_filesystem(root)
    if piece.vectors is None and not root.endswith(".lance"):
        listed = _folders(fs, path).get("metadata", {})
        if piece.embeddings not in listed:
            return None
        with open_plain(fs.unstrip_protocol(listed[piece.embeddings]["name"])) as file:
            return list(pq.ParquetFile(file, pre_buffer=False).schema_arrow.names)
    table = read_published(uri).metadata
    return None if table is None else table.column_names


def _of_table(table: pa.Table, modality: Modality, path: str) -> Published:
    vectors, rest = split_vectors(table, modality, path)
    return Published(vectors, rest, dict.fromkeys((*vectors, "metadata"), path))


def _listed(fs: Any, path: str) -> list[dict[str, Any]]:
    try:
        infos: list[dict[str, Any]] = fs.ls(path, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return infos


def _folders(fs: Any, path: str) -> dict[str, dict[str, dict[str, Any]]]:
    """List the files of the shards: kind → shard name → info, without kinds that have no files."""
    kinds = {
        kind: _numbered(_listed(fs, f"{path}/{folder}"), folder, suffix) for kind, (folder, suffix) in FOLDERS.items()
    }
    names = list(dict.fromkeys(name for modality in MODALITIES for name in kinds[modality]))
    if names and not kinds["metadata"]:
        others = [
            posixpath.basename(info["name"].rstrip("/")) for info in _listed(fs, path) if info["type"] == "directory"
        ]
        tables = {
            folder: _numbered(_listed(fs, f"{path}/{folder}"), folder, ".parquet")
            for folder in sorted(others)
            if "metadata" in folder.lower()
        }
        tables = {folder: numbered for folder, numbered in tables.items() if numbered}
        if len(tables) > 1:
            raise SourceError(
                f"{path} has several folders of metadata ({', '.join(tables)}): keep only one of them there"
            )
        kinds["metadata"] = next(iter(tables.values()), {})
    kinds["metadata"] = _as_named(names, kinds["metadata"])
    return {kind: files for kind, files in kinds.items() if files}


def _numbered(infos: Iterable[dict[str, Any]], folder: str, suffix: str) -> dict[str, dict[str, Any]]:
    """Index the files of a folder by the part of their name after the folder's name or ``metadata``, if it has that."""
    numbered: dict[str, dict[str, Any]] = {}
    for info in infos:
        name = posixpath.basename(info["name"])
        match = re.fullmatch(rf"(?:(?:{re.escape(folder)}|metadata)_?)?(.+){re.escape(suffix)}", name)
        if match is not None and info["type"] == "file" and not name.startswith("."):
            if match[1] in numbered:
                raise _same_number(numbered[match[1]], info)
            numbered[match[1]] = info
    return numbered


def _as_named(names: Iterable[str], files: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Index files by the names of their shards, ignoring leading zeros."""
    names = set(names)
    by_number = {_number(name): name for name in sorted(names)}
    named: dict[str, dict[str, Any]] = {}
    for own, info in files.items():
        name = own if own in names else by_number.get(_number(own), own)
        if name in named:
            raise _same_number(named[name], info)
        named[name] = info
    return named


def _same_number(one: Mapping[str, Any], other: Mapping[str, Any]) -> SourceError:
    return SourceError(f"{one['name']} and {other['name']} have the same number: keep only one of them there")


def _number(name: str) -> str:
    return str(int(name)) if name.isascii() and name.isdecimal() else name


def _folder_sources(
    root: str,
    base: str,
    kinds: Mapping[str, Mapping[str, dict[str, Any]]],
    committed: Collection[str] | None,
) -> list[Source]:
    names = set().union(*kinds.values())
    if committed is not None:
        names &= {*committed}
    for kind, files in kinds.items():
        if missing := sorted(names - files.keys()):
            raise SourceError(
                f"{root} has no {FOLDERS[kind][0]} for {shortened(missing)}, "
                "which its other folders have: fetch them, or move the others away"
            )
    sources = []
    for name in sorted(names):
        infos = [files[name] for files in kinds.values()]
        uri = join_uri(base, Piece(embeddings=name))
        sources.append(Source(uri=uri, bytes=sum(info["size"] for info in infos), etag=_etag(infos)))
    return sources


def _flat_source(fs: Any, path: str, name: str, modality: Modality) -> Source:
    info = fs.info(f"{path}/{name}")
    uri = join_uri(uri_of(fs, path), Piece(vectors=name, modality=modality_of(name, modality)))
    return Source(uri=uri, bytes=info["size"] or 0, etag=_etag([info]))


def _etag(infos: Iterable[dict[str, Any]]) -> str:
    versions = [[info["size"], version_of(info)] for info in infos]
    return sha256(repr(versions).encode())[:32]


def _load(fs: Any, file: str) -> npt.NDArray[Any]:
    try:
        array: Any = read_npy(Path(file), mapped=True) if is_local(fs) else read_npy(io.BytesIO(fs.cat_file(file)))
    except FileNotFoundError:
        raise
    except (ValueError, EOFError, OSError) as error:
        raise SourceError(f"{file} cannot be read as an array of numbers ({error}): fetch it again") from None
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind != "f":
        shape = f"{array.dtype}{list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
        raise SourceError(f"{file} holds {shape}: expected float16, float32 or float64 of [rows, width]")
    return array


def _read_table(fs: Any, file: str) -> pa.Table:
    try:
        return read_parquet(fs.cat_file(file))
    except pa.ArrowException as error:
        raise SourceError(f"{file} is not a readable parquet file ({error}): fetch it again") from None


def _lance_sources(root: str, modality: Modality) -> list[Source]:
    dataset = open_lance(root)
    n_rows = dataset.count_rows()
    return [
        Source(
            uri=join_uri(root, Piece(vectors="", items=(start, min(start + ROWS_A_SHARD, n_rows)), modality=modality)),
            bytes=0,
            etag=str(dataset.version),
        )
        for start in range(0, n_rows, ROWS_A_SHARD)
    ]
