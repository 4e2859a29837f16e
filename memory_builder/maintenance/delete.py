"""Delete rows by row id, pair key or filter."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from memory_builder.base.arguments import several, shortened
from memory_builder.base.log import logger
from memory_builder.base.types import Ids
from memory_builder.catalog.delete_rows import delete_rows
from memory_builder.catalog.description import read_description
from memory_builder.catalog.manifest import Manifest
from memory_builder.catalog.rows import Rows
from memory_builder.catalog.snapshots import Snapshot
from memory_builder.catalog.tombstones import check_ids
from memory_builder.errors import UsageError
from memory_builder.storage.store import Store


def delete(
    store: Store,
    *,
    ids: npt.ArrayLike | None = None,
    keys: str | Sequence[str] | None = None,
    where: str | None = None,
) -> Snapshot:
    """Delete rows from search, named in one of three ways; the next opening of the memory does not return them.

    Args:
        store: storage of the memory.
        ids: i64[n] row ids.
        keys: one or several pair keys; every row with one of them is deleted, in any shard.
        where: a filter, as for search.

    Raises:
        UsageError: none or several ways, an unknown row, an invalid filter, or no matching row.
        ConcurrentWriterError: other writers kept winning the race for a snapshot.
    """
    if sum(given is not None for given in (ids, keys, where)) != 1:
        raise UsageError("give exactly one of ids, keys and where")
    store.sweep()
    logger.info(f"delete: {store.root}")
    description = read_description(store)
    commits = Manifest.read(store).commits
    if ids is not None:
        chosen = check_ids(ids, commits, store.root)
    else:
        chosen = _rows_named(Rows(store, commits, description.d), () if keys is None else several(keys), where)
    if not len(chosen):
        raise UsageError(f"nothing to delete: no row of {store.root} matches")
    return delete_rows(store, chosen)


def _rows_named(rows: Rows, keys: Sequence[str], where: str | None) -> Ids:
    if where is not None:
        from memory_builder.search.where import matching_rows  # its parser takes a while to import

        return matching_rows(rows, where).ids()
    ids, unknown = rows.with_keys(list(keys))
    if unknown and len(ids):
        logger.warning(f"{len(unknown):,} keys are in no shard: {shortened(unknown)}")
    return np.unique(ids)
