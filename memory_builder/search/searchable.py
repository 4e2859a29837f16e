"""``Searchable``: the protocol of ``Memory`` and ``RemoteMemory``."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy.typing as npt
import pyarrow as pa

from memory_builder.base.types import Modality, Scores
from memory_builder.catalog.description import Description
from memory_builder.catalog.metadata import LOOKUP_FIELDS
from memory_builder.catalog.snapshots import Snapshot
from memory_builder.search.hits import Hits
from memory_builder.search.queries import Picture


@runtime_checkable
class Searchable(Protocol):
    """Methods that ``Memory`` and ``RemoteMemory`` share: code that takes a ``Searchable`` runs with either.

    The methods are documented in ``Memory``.
    """

    @property
    def description(self) -> Description:
        """Settings that all rows of the memory share."""
        ...

    @property
    def snapshot(self) -> Snapshot:
        """The snapshot that is searched."""
        ...

    def __len__(self) -> int: ...

    def search(
        self,
        text: str | Sequence[str] | None = None,
        *,
        image: Picture | Sequence[Picture] | None = None,
        vectors: npt.ArrayLike | None = None,
        k: int = 10,
        query_modality: Modality | None = None,
        modality: Modality | None = None,
        where: str | None = None,
        nprobe: int | None = None,
        refine: int | None = None,
        side: Modality | None = None,
        keys: Modality | None = None,
    ) -> Hits: ...

    def rows(self, ids: npt.ArrayLike, columns: str | Sequence[str] = LOOKUP_FIELDS) -> pa.Table: ...

    def metadata(self, ids: npt.ArrayLike, columns: str | Sequence[str] | None = None) -> pa.Table: ...

    def vectors(
        self, ids: npt.ArrayLike, modality: Modality | None = None, *, keys: Modality | None = None
    ) -> Scores: ...

    def picture(self, row_id: int) -> bytes: ...

    def stated_recall(
        self, modality: Modality = "image", query_modality: str | None = None
    ) -> dict[str, float] | None: ...

    def info(self) -> dict[str, Any]: ...
