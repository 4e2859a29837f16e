"""CLIP_benchmark's webdataset folders: ``SPLIT/nshards.txt`` and ``SPLIT/0.tar`` …

A sample is the files of one stem in a tar: a picture and ``.cls`` (its label), ``.npy`` (a 0 or 1 for each class) or
``.txt`` (a caption a line).
"""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from memory_builder.errors import SourceError
from memory_builder.readers.splits import TAR_MARK
from memory_builder.readers.tar_stream import Cut, read_members, split_name
from trainer.evaluate.sets.examples import Example, Kind
from trainer.evaluate.sets.texts import read_text

PICTURES = ("webp", "png", "jpg", "jpeg")
"""Suffixes of pictures, in order of preference."""


def is_one(folder: Path) -> bool:
    """Whether a split's folder holds tars."""
    return (folder / TAR_MARK).exists() or any(folder.glob("*.tar"))


def shards(folder: Path) -> tuple[Path, ...]:
    """The tars that ``nshards.txt`` counts.

    Raises:
        SourceError: ``nshards.txt`` is missing or no number, or a tar is missing.
    """
    path = folder / TAR_MARK
    if not path.exists():
        raise SourceError(f"{path} is missing: write the number of tars, named 0.tar, 1.tar …")
    text = read_text(path).strip()
    if not text.isdecimal() or int(text) < 1:
        raise SourceError(f"{path} says {text!r}: expected the number of tars, at least 1")
    tars = tuple(folder / f"{i}.tar" for i in range(int(text)))
    missing = [tar.name for tar in tars if not tar.is_file()]
    if missing:
        raise SourceError(
            f"{folder} lacks {len(missing)} of the {text} tars that {TAR_MARK} counts, {missing[0]} first: download "
            "the set again"
        )
    return tars


def read(tars: Sequence[Path], kind: Kind, n_classes: int) -> Iterator[Example]:
    """Read the samples of the tars in order. Raises SourceError at the first invalid one."""
    n_read = 0
    seen: set[str] = set()
    for tar in tars:
        for key, files in _samples(tar):
            where = f"{tar}: {key}"
            if key in seen:
                raise SourceError(f"{where} occurs twice in the set: names must be unique")
            seen.add(key)
            n_read += 1
            yield _example(key, files, kind, n_classes, where)
    if not n_read:
        raise SourceError(f"{tars[0].parent} has no samples: expected pictures in its tars")


def _samples(tar: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(stem, its files by suffix); the files of a sample are adjacent in the tar."""
    key = ""
    files: dict[str, bytes] = {}
    with tar.open("rb") as file:
        for member in read_members(file):
            if isinstance(member, Cut):
                raise SourceError(f"{tar} is truncated at byte {member.offset:,} ({member.reason}): download it again")
            if member.fault:
                raise SourceError(f"{tar}: {member.name} cannot be read ({member.fault}): download it again")
            stem, suffix = split_name(member.name)
            if stem != key and files:
                yield key, files
                files = {}
            key, files[suffix] = stem, member.data
    if files:
        yield key, files


def _example(key: str, files: dict[str, bytes], kind: Kind, n_classes: int, where: str) -> Example:
    image = next((files[suffix] for suffix in PICTURES if suffix in files), None)
    if image is None:
        raise SourceError(
            f"{where} has no picture: expected a .{', .'.join(PICTURES)} beside {', '.join(sorted(files))}"
        )
    if kind == "retrieval":
        return Example(key=key, image=image, captions=_captions(files, where))
    labels = _class(files, n_classes, where) if kind == "classification" else _classes(files, n_classes, where)
    return Example(key=key, image=image, labels=labels)


def _captions(files: dict[str, bytes], where: str) -> tuple[str, ...]:
    text = _needed(files, "txt", where, "a caption a line").decode("utf-8", "replace")
    captions = tuple(line for line in text.splitlines() if line.strip())
    if not captions:
        raise SourceError(f"{where}.txt is empty: a picture without captions cannot be retrieved by one")
    return captions


def _class(files: dict[str, bytes], n_classes: int, where: str) -> tuple[int, ...]:
    text = _needed(files, "cls", where, "the label, a number").decode("utf-8", "replace").strip()
    if not text.isdecimal() or int(text) >= n_classes:
        raise SourceError(
            f"{where}.cls says {text[:40]!r}: expected a label from 0 to {n_classes - 1}, as classnames.txt has "
            f"{n_classes} lines"
        )
    return (int(text),)


def _classes(files: dict[str, bytes], n_classes: int, where: str) -> tuple[int, ...]:
    data = _needed(files, "npy", where, "a 0 or 1 for each class")
    try:
        present = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)  # np.load reads pickles and zips too
    except (ValueError, EOFError, OSError) as error:
        raise SourceError(f"{where}.npy is no array of numbers ({error}): save it again with numpy.save") from None
    if present.shape != (n_classes,) or not np.isin(present, (0, 1)).all():
        raise SourceError(
            f"{where}.npy holds {present.dtype}{list(present.shape)}: expected a 0 or 1 for each of the {n_classes} "
            "lines of classnames.txt"
        )
    return tuple(np.flatnonzero(present).tolist())


def _needed(files: dict[str, bytes], suffix: str, where: str, holds: str) -> bytes:
    if suffix not in files:
        raise SourceError(
            f"{where} has no .{suffix} ({holds}), only {', '.join(sorted(files))}. "
            "dataset_type.txt names the kind of the set: classification, multilabel or retrieval"
        )
    return files[suffix]
