"""Records of a subset's tars, and the schema of rows left out of them."""

from dataclasses import dataclass

import pyarrow as pa

from memory_builder.catalog.paths import shard_name
from memory_builder.retrieval.block_records import done_records, is_table
from memory_builder.storage.records import Count, Digest, Seconds, strict_record
from memory_builder.storage.store import Store

RECORDS = "commits"


LEFT_OUT = "left_out"


STRIPS = "strips"


STRIP = pa.schema([("id", pa.int64()), ("thumbnail", pa.binary())])


@strict_record
@dataclass(frozen=True, kw_only=True, slots=True)
class PieceRecord:
    """Commit record of a tar."""

    number: Count
    n_pairs: Count
    n_bytes: Count
    missing: dict[str, Count]
    """Reason → number of pairs."""
    evidence: dict[str, Count]
    """Kind of evidence → number of leaks with it; a leak may have several."""
    n_leaks: Count
    sha256: Digest
    seconds: dict[str, Seconds]


def done_pieces(store: Store) -> dict[int, PieceRecord]:
    """Records of committed tars with all their files at the recorded size."""
    files = set(store.list(""))

    def is_whole(record: PieceRecord) -> bool:
        name = shard_name(record.number)
        return (
            f"{name}.tar" in files
            and store.size(f"{name}.tar") == record.n_bytes
            and is_table(store, f"{LEFT_OUT}/{name}.parquet", OUT, 1 << 32)
            and is_table(store, f"{STRIPS}/{name}.parquet", STRIP, 1 << 32)
        )

    return done_records(store, RECORDS, PieceRecord, is_whole)


OUT = pa.schema(
    [
        ("id", pa.int64()),
        ("key", pa.string()),
        ("missing", pa.string()),
        ("evidence", pa.list_(pa.string())),
        ("set", pa.string()),
        ("set_key", pa.string()),
        ("embedding", pa.float32()),
        ("hash", pa.float32()),
        ("miniature", pa.float32()),
        ("pixels", pa.float32()),
        ("both", pa.float32()),
        ("thumbnail", pa.binary()),
    ]
)
"""``missing``: reason of a missing picture, else null. The other columns are of leaks: evidence, and the evaluation
picture."""
