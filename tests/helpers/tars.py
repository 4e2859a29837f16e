"""Tars, pictures and published indexes for the tests of this folder."""

import io
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from faiss.contrib.ondisk import merge_ondisk
from PIL import Image

Member = tuple[str | tarfile.TarInfo, bytes]


def picture(
    seed: int = 0, size: tuple[int, int] = (24, 20), kind: str = "PNG", mode: str = "RGB", **save: Any
) -> bytes:
    """An encoded picture of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **save)
    return buffer.getvalue()


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, linkname: str = "") -> tarfile.TarInfo:
    """A tar header to be filled in as wanted."""
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, linkname
    return info


def raw(info: tarfile.TarInfo, data: bytes = b"", *, size: int | None = None) -> bytes:
    """One member as it lies in a tar, its header claiming ``size`` whatever the data is."""
    info.size = len(data) if size is None else size
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape") + data + b"\0" * (-len(data) % 512)


END = b"\0" * 1024


def tar_bytes(members: Iterable[Member], *, kind: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar of these members in this order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind, errors="surrogateescape") as tar:
        for member, data in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            if info.isreg():
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def pair(key: str, seed: int = 0) -> list[Member]:
    """A good pair: picture and caption."""
    return [(f"{key}.png", picture(seed)), (f"{key}.txt", f"a picture called {key}".encode())]


def good_pairs(keys: Sequence[str]) -> list[Member]:
    """Good pairs with different pictures."""
    return [member for seed, key in enumerate(keys) for member in pair(key, seed)]


def published_index(path: Path, vectors: Any, key: str, merged: bool) -> Any:
    """A dense index of these vectors, as one file or merged on disk."""
    index = faiss.index_factory(vectors.shape[1], key, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    if not merged:
        index.add(vectors)
        faiss.write_index(index, str(path))
        return index
    path.mkdir()
    faiss.write_index(index, str(path / "trained.index"))
    blocks = []
    for i, block in enumerate(np.array_split(np.arange(len(vectors)), 3)):
        part = faiss.read_index(str(path / "trained.index"))
        part.add_with_ids(vectors[block], block)
        blocks.append(str(path / f"block_{i}.index"))
        faiss.write_index(part, blocks[-1])
    merged_index = faiss.read_index(str(path / "trained.index"))
    merge_ondisk(merged_index, blocks, str(path / "merged_index.ivfdata"))
    faiss.write_index(merged_index, str(path / "populated.index"))
    return faiss.read_index(str(path / "populated.index"), faiss.IO_FLAG_ONDISK_SAME_DIR)
