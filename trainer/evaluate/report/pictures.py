"""Thumbnails of what was asked about and of rows of memories, as far as they are still there and not deleted."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from memory_builder.base.pages import data_uri
from memory_builder.base.types import Ids, split_ids
from memory_builder.catalog.trusted_sources import link_policy
from memory_builder.errors import MemoryBuilderError
from memory_builder.memory import Memory
from memory_builder.model.images import BadImageError, decode_image, thumbnail
from memory_builder.readers.fetch import Missing, PictureRef, read_pictures
from memory_builder.readers.link_policy import LinkPolicy
from trainer.evaluate.report.entries import Group
from trainer.evaluate.sets.datasets import open_dataset

SIDE = 128
"""Pixels: twice what a page shows, for fine screens."""
DELETED = "deleted"
"""Said in place of a caption."""


class Pictures:
    """Small pictures as data URIs. Each shard is read once, and what cannot be read is told in ``missing``."""

    def __init__(self, local_roots: Sequence[str] = (), allow_hosts: Sequence[str] = ()) -> None:
        """The arguments are those of ``link_policy``."""
        self._local_roots, self._allow_hosts = tuple(local_roots), tuple(allow_hosts)
        self.missing: set[str] = set()
        """In words."""
        self._asked: dict[str, str] = {}
        self._rows: dict[tuple[str, int], tuple[str | None, str]] = {}

    def asked(self, key: str) -> str | None:
        """A picture of the set."""
        return self._asked.get(key)

    def row(self, root: str, row_id: int) -> tuple[str | None, str]:
        """(picture, caption) of a row of a memory."""
        return self._rows.get((root, row_id), (None, ""))

    def read_asked(self, group: Group, keys: set[str]) -> None:
        """Read these pictures of a set, unless it has changed since it was measured."""
        measured = group.dataset
        try:
            dataset = open_dataset(Path(measured["root"]), measured["split"])
            if dataset.digest() == measured["digest"]:
                for example in dataset.examples(frozenset(keys)):
                    self._asked[example.key] = _data_uri(example.image)
            else:
                self.missing.add(f"Evaluation pictures are not shown: {measured['root']} has changed since.")
        except MemoryBuilderError as error:
            self.missing.add(f"Evaluation pictures are not shown: {error}")

    def read_rows(self, root: str, row_ids: Sequence[int]) -> None:
        """Read the captions and pictures of these rows of a memory; of a deleted one only that it is."""
        try:
            memory = Memory.open(root)
            rows = memory.rows(self._standing(memory, root, row_ids)).to_pylist()  # a memory made anew may lack them
        except MemoryBuilderError as error:
            self.missing.add(f"Rows of the memory are not shown: {error}")
            return
        self._rows |= {(root, row["id"]): (None, row["caption"] or "") for row in rows}
        policy = link_policy(memory.commits.values(), local_roots=self._local_roots, allow_hosts=self._allow_hosts)
        ids = np.sort(np.array([row["id"] for row in rows], np.int64))
        for of_shard in np.split(ids, np.flatnonzero(np.diff(split_ids(ids)[0])) + 1) if len(ids) else ():
            try:
                self._read_shard(memory, root, of_shard, policy)
            except MemoryBuilderError as error:
                self.missing.add(f"Some pictures of the memory are not shown: {error}")

    def _read_shard(self, memory: Memory, root: str, ids: Ids, policy: LinkPolicy) -> None:
        """Read the pictures of these rows of one shard."""
        rows = memory.metadata(ids, ["member", "url", "sha256", "has_image"]).to_pylist()
        refs = [PictureRef.of(row) for row in rows]
        for which, picture in read_pictures(memory.source(int(ids[0])), refs, policy, memory.image_key):
            row_id = int(ids[which])
            try:
                if isinstance(picture, Missing):
                    raise BadImageError(picture.reason)
                self._rows[root, row_id] = (_data_uri(picture), self._rows[root, row_id][1])
            except BadImageError as error:
                self.missing.add(f"Some pictures of the memory are not shown: {error}")

    def _standing(self, memory: Memory, root: str, row_ids: Sequence[int]) -> Ids:
        """i64[m] those that are not deleted; the others are recorded as missing."""
        ids = np.array(row_ids, np.int64)
        deleted = memory.is_deleted(ids)
        if deleted.any():
            self._rows |= {(root, row_id): (None, DELETED) for row_id in ids[deleted].tolist()}
            self.missing.add(f"Rows of the memory are not shown that were deleted since: {root}")
        return ids[~deleted]


def _data_uri(data: bytes) -> str:
    """An encoded picture as a small one inside a data URI.

    Raises:
        BadImageError: it cannot be decoded.
    """
    small = thumbnail(decode_image(data), SIDE)
    return data_uri(small, "image/webp")
