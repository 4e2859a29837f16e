"""A source: one input file or a piece of it. A shard: a source with its ordinal in the plan."""

from dataclasses import dataclass

from memory_builder.errors import UsageError

MAX_ORDINAL = 1 << 21  # a row id then stays below 2**53 and is exact in JavaScript


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One input file or a piece of it."""

    uri: str
    bytes: int
    etag: str
    """Version of the content: an object store's ETag, or size and modification time of a local file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard(Source):
    """A source with its ordinal in the plan."""

    ordinal: int
    earlier: tuple[int, ...] = ()
    """Ordinals of committed shards of an earlier state of the same source; not part of the plan."""

    def __post_init__(self) -> None:
        if not 0 <= self.ordinal < MAX_ORDINAL:
            raise UsageError(f"shard {self.ordinal} of {self.uri}: a memory holds at most {MAX_ORDINAL:,} shards")
