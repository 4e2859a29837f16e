"""``Hits``: scores and row ids of a search, and their rows as lists, tables and thumbnails."""

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from memory_builder.base.log import warn_once
from memory_builder.base.types import NO_ROW, Ids, Scores
from memory_builder.catalog.metadata import LOOKUP_FIELDS, PATH
from memory_builder.errors import CorruptMemoryError, MemoryBuilderError, UsageError
from memory_builder.storage.formats import arrow_array

if TYPE_CHECKING:
    from memory_builder.search.searchable import Searchable

COLUMNS = (*LOOKUP_FIELDS, PATH)
"""Columns of a hit, besides its query, id and score."""
OWN_COLUMNS = ("query", "id", "score", "similarity")
"""Columns computed from the hits themselves; ``similarity`` is clip-retrieval's name of the score."""
THUMBNAIL_PIXELS = 128
SHOWN_IN_NOTEBOOK = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class Hits:
    """The k rows nearest to each of q queries, best first. ``scores, ids = hits`` unpacks them as faiss returns them.

    ``len(hits)`` is q; ``hits[i]`` are the hits of query i, ``hits[i:j]`` those of several.
    """

    scores: Scores
    """f32[q, k] inner products of unit vectors; -inf pads short results."""
    ids: Ids
    """i64[q, k] row ids; -1 pads short results."""
    memory: "Searchable | None" = field(default=None, repr=False, compare=False)
    """The searched memory, which looks up the rows of the ids."""

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Any]:
        yield self.scores
        yield self.ids

    def __getitem__(self, query: int | slice) -> "Hits":
        if isinstance(query, int):
            if not -len(self) <= query < len(self):
                raise IndexError(f"query {query} of {len(self)}")
            query = slice(query % len(self), query % len(self) + 1)
        return Hits(scores=self.scores[query], ids=self.ids[query], memory=self.memory)

    def to_arrow(self, columns: str | Sequence[str] = COLUMNS) -> pa.Table:
        """Return a table with a row for each hit: ``query``, ``id``, ``score`` and these metadata columns; no padding.

        Raises:
            UsageError: a column does not exist, or the hits have no memory to look it up in.
        """
        names = [columns] if isinstance(columns, str) else list(columns)
        is_hit = self.ids != NO_ROW
        queries, _ = np.nonzero(is_hit)
        ids = self.ids[is_hit]
        table = {"query": arrow_array(queries), "id": arrow_array(ids), "score": arrow_array(self.scores[is_hit])}
        if "similarity" in names:
            table["similarity"] = table["score"]
        stored = [name for name in dict.fromkeys(names) if name not in OWN_COLUMNS]
        if stored:
            rows = self._rows(ids, stored)
            table |= {name: rows[name] for name in stored}
        return pa.table(table)

    def to_list(self, columns: str | Sequence[str] = COLUMNS) -> list[list[dict[str, Any]]]:
        """Return a list of hits for each query, best first, with ``id``, ``score`` and these columns."""
        lists: list[list[dict[str, Any]]] = [[] for _ in range(len(self))]
        for row in self.to_arrow(columns).to_pylist():
            lists[row.pop("query")].append(row)
        return lists

    def to_pandas(self, columns: str | Sequence[str] = COLUMNS) -> Any:
        """Return ``to_arrow`` as a pandas DataFrame (needs pandas)."""
        return self.to_arrow(columns).to_pandas()

    def _rows(self, ids: Ids, columns: Sequence[str]) -> pa.Table:
        if self.memory is None:
            raise UsageError("these hits have no memory: only scores and ids are known")
        try:
            return self.memory.rows(ids, columns)
        except CorruptMemoryError as error:
            # A damaged metadata file need not hide columns of the look-up files.
            if set(columns) - set(COLUMNS):
                raise
            warn_once(f"{error.problem}; hits are shown without their paths")
            rows = self.memory.rows(ids, [name for name in columns if name != PATH])
            return rows.append_column(PATH, pa.nulls(len(ids), pa.string())) if PATH in columns else rows

    def _repr_html_(self) -> str:
        """Render thumbnails with score and caption in a notebook, a line for each query."""
        if self.memory is None:
            return f"<pre>{html.escape(repr(self))}</pre>"
        cells, n_shown = [], 0
        for query in self.to_list():
            shown = query[: max(0, SHOWN_IN_NOTEBOOK - n_shown)]
            n_shown += len(shown)
            cells.append("".join(f"<td style='text-align:center'>{self._cell(hit)}</td>" for hit in shown))
        return f"<table>{''.join(f'<tr>{line}</tr>' for line in cells)}</table>"

    def _cell(self, hit: dict[str, Any]) -> str:
        caption = html.escape(hit["caption"] or hit["key"] or "")
        return f"{self._thumbnail(hit['id'])}<br>{hit['score']:.3f}<br>{caption}"

    def _thumbnail(self, row_id: int) -> str:
        from memory_builder.base.pages import data_uri
        from memory_builder.model.images import BadImageError, decode_image, thumbnail

        assert self.memory is not None
        try:
            small = thumbnail(decode_image(self.memory.picture(row_id)), THUMBNAIL_PIXELS)
        except (MemoryBuilderError, BadImageError):
            return ""
        return f"<img src='{data_uri(small, 'image/webp')}'>"
