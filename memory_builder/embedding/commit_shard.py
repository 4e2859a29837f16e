"""Write the files of one shard and their commit record, for embedded and imported vectors alike."""

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from memory_builder.base.types import Vectors
from memory_builder.catalog.commits import Commit, write_commit
from memory_builder.catalog.metadata import LOOKUP_FIELDS
from memory_builder.catalog.paths import lookup_path, metadata_path, rejects_path, vectors_path
from memory_builder.readers.read import Reject
from memory_builder.readers.shard import Shard
from memory_builder.storage.formats import arrow_bytes, npy_bytes, parquet_bytes
from memory_builder.storage.store import Store, sha256

REJECTS = pa.schema([("key", pa.string()), ("reason", pa.string())])


def commit_shard(
    store: Store,
    shard: Shard,
    *,
    images: Vectors,
    texts: Vectors,
    metadata: pa.Table,
    rejects: Sequence[Reject],
    partial: str | None,
    config_hash: str,
    seconds: dict[str, float],
    notes: dict[str, int] | None = None,
) -> Commit:
    """Write a shard's files, then its commit record.

    Args:
        images, texts: f16[n, d], unit rows; zeros where a row lacks that modality.
        metadata: n rows, see ``metadata.metadata_table``.
        seconds: wall time by step; ``write`` is added.
    """
    started = time.perf_counter()
    rejected = {"key": [reject.key for reject in rejects], "reason": [reject.reason for reject in rejects]}
    files = {
        vectors_path(shard.ordinal, "image"): npy_bytes(images),
        vectors_path(shard.ordinal, "text"): npy_bytes(texts),
        metadata_path(shard.ordinal): parquet_bytes(metadata),
        lookup_path(shard.ordinal): arrow_bytes(metadata.select(LOOKUP_FIELDS)),
        rejects_path(shard.ordinal): parquet_bytes(pa.table(rejected, schema=REJECTS)),
    }
    for path, data in files.items():
        store.put(path, data)
    write_s = time.perf_counter() - started
    commit = Commit(
        ordinal=shard.ordinal,
        uri=shard.uri,
        etag=shard.etag,
        config_hash=config_hash,
        n_read=metadata.num_rows + len(rejects),
        n_written=metadata.num_rows,
        n_images=_count(metadata["has_image"]),
        n_texts=_count(metadata["has_text"]),
        reasons=dict(sorted(Counter(reject.reason for reject in rejects).items())),
        partial=partial,
        checksums={path: sha256(data) for path, data in files.items()},
        seconds=seconds | {"write": write_s, "total": seconds["total"] + write_s},
        notes={note: n for note, n in sorted((notes or {}).items()) if n},
    )
    return write_commit(store, commit)


def _count(flags: Any) -> int:
    return int(flags.to_numpy().sum())
