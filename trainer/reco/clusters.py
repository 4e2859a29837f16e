"""Clusters of pictures that show the same artwork: a table of pair keys and clusters."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from memory_builder.base.types import Ids
from memory_builder.errors import UsageError
from memory_builder.storage.formats import read_parquet
from memory_builder.storage.store import Store

NO_CLUSTER = -1


@dataclass(frozen=True, slots=True)
class Clusters:
    """Pair keys, and the cluster of each."""

    keys: pa.Array
    """n distinct strings."""
    numbers: Ids
    """i64[n], equal for pictures of one artwork."""

    def of(self, keys: pa.ChunkedArray | pa.Array) -> Ids:
        """Pair keys → i64[m] clusters; -1 for an unknown key."""
        rows = np.asarray(pc.fill_null(pc.index_in(keys, value_set=self.keys), NO_CLUSTER), np.int64)
        return np.append(self.numbers, NO_CLUSTER)[rows]


def read_clusters(path: str | None) -> Clusters:
    """Read a parquet file with columns ``key`` and ``cluster``; no file gives no clusters.

    Raises:
        UsageError: no such file, or no such columns in it.
    """
    if path is None:
        return Clusters(pa.array([], pa.string()), np.zeros(0, np.int64))
    try:
        table = read_parquet(Store(path).read("")).select(["key", "cluster"])
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise UsageError(
            f"--clusters {path} cannot be read ({error}): expected a parquet file with columns key and cluster"
        ) from None
    keys = table["key"].combine_chunks().cast(pa.string())
    if table["cluster"].null_count or keys.null_count or len(pc.unique(keys)) != len(keys):
        raise UsageError(f"--clusters {path}: every row needs a distinct key, and a cluster")
    numbers = pc.index_in(table["cluster"], value_set=pc.unique(table["cluster"]))
    return Clusters(keys, np.asarray(numbers, np.int64))
