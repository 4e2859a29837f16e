"""``memory-builder embed``: embed image-text pairs into a memory."""

from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction, arg

from memory_builder.commands.console import print_embedded
from memory_builder.commands.options import FAILED, RunnerOptions
from memory_builder.embedding.config import EmbedConfig
from memory_builder.errors import UsageError
from memory_builder.model.encoder import EncoderConfig


@dataclass(frozen=True, kw_only=True)
class Embed:
    """Embed shards of image-text pairs into a memory. Run it again to resume, or to add shards."""

    source: Annotated[tuple[str, ...], Positional, arg(metavar="SOURCE…")]
    """Tars, parquet files, CSV, TSV or JSONL listings: files, folders of them or of pictures, globs, brace ranges such
    as 'data/{00000..00099}.tar'; local, s3://, gs://, https://."""
    memory: str
    """Folder of the memory: a local path or an fsspec URL."""
    encoder: OmitArgPrefixes[EncoderConfig]
    pairs: OmitArgPrefixes[EmbedConfig] = field(default_factory=EmbedConfig)
    decode_threads: int | None = None
    """Decoding threads of each worker (default: its number of CPUs)."""
    allow_host: UseAppendAction[tuple[str, ...]] = ()
    """Host, or HOST:PORT, with a non-public address that links may lead to; may be repeated. The host of an http(s)
    SOURCE is allowed for that source."""
    retry_failed: bool = False
    """Embed only the shards that failed last time: those of SOURCE, or without SOURCE all of the memory."""
    retry_rejects: bool = False
    """Embed only the rejected pairs: those of SOURCE, or without SOURCE all of the memory. They become new shards."""
    runner: OmitArgPrefixes[RunnerOptions] = field(default_factory=RunnerOptions)

    def run(self) -> int:
        from memory_builder.embedding.driver import embed

        if self.retry_failed and self.retry_rejects:
            raise UsageError("--retry-failed and --retry-rejects: one after the other")
        if not self.source and not self.retry_failed and not self.retry_rejects:
            raise UsageError("nothing to embed: pass shards, as in embed 'data/*.tar' --memory MEMORY --model …")
        report = embed(
            self.source,
            self.memory,
            encoder=self.encoder,
            config=self.pairs,
            runner=self.runner.start(),
            decode_threads=self.decode_threads,
            allow_hosts=self.allow_host,
            retry_failed=self.retry_failed,
            retry_rejects=self.retry_rejects,
        )
        return 0 if print_embedded(report) else FAILED
