"""Commands that build a memory: embed, import, index, demo."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction, arg

from memory_builder.base.progress import duration
from memory_builder.base.types import (
    Modality,
)
from memory_builder.commands.console import print_embedded, print_indexes
from memory_builder.commands.options import FAILED, RunnerOptions, named_encoder
from memory_builder.embedding.config import EmbedConfig
from memory_builder.errors import UsageError
from memory_builder.indexing.build import IndexConfig
from memory_builder.model.encoder import EncoderConfig
from memory_builder.readers.read import CAPTION
from memory_builder.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Build and ask a memory of 2,385 bundled icons with a small bundled model; write a report of it."""

    out: Path = Path("demo")
    """Folder for the sample, the memory and report.html."""

    def run(self) -> int:
        from memory_builder.demo import run_demo

        print(f"report: {run_demo(self.out)}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Embed:
    """Embed shards of image-text pairs into a memory. Run it again to go on, or to add shards."""

    source: Annotated[tuple[str, ...], Positional, arg(metavar="SOURCE…")]
    """Tars, parquet files, CSV, TSV or JSONL listings: files, folders of them or of pictures, globs, brace ranges such
    as 'data/{00000..00099}.tar'; local, s3://, gs://, https://."""
    memory: str
    """Folder of the memory: a local path or an fsspec URL."""
    encoder: OmitArgPrefixes[EncoderConfig]
    config: OmitArgPrefixes[EmbedConfig] = field(default_factory=EmbedConfig)
    decode_threads: int | None = None
    """Threads that decode pictures in each worker; as many as it has CPUs unless given."""
    allow_host: UseAppendAction[tuple[str, ...]] = ()
    """Host, or HOST:PORT, that links may lead to although its address is not public; may be repeated. The host of an
    http(s) SOURCE is allowed for it."""
    retry_failed: bool = False
    """Only the shards that failed last time: those of SOURCE, or without SOURCE all of the memory's."""
    retry_rejects: bool = False
    """Only the pairs that were rejected, likewise; what comes of them becomes new shards."""
    on: OmitArgPrefixes[RunnerOptions] = field(default_factory=RunnerOptions)

    def run(self) -> int:
        from memory_builder.embedding.driver import embed

        if self.retry_failed and self.retry_rejects:
            raise UsageError("--retry-failed and --retry-rejects: one after the other")
        if not self.source and not self.retry_failed and not self.retry_rejects:
            raise UsageError("nothing to embed: name shards, as in embed 'data/*.tar' --memory MEMORY --model …")
        report = embed(
            self.source,
            self.memory,
            encoder=self.encoder,
            config=self.config,
            runner=self.on.start(),
            decode_threads=self.decode_threads,
            allow_hosts=self.allow_host,
            retry_failed=self.retry_failed,
            retry_rejects=self.retry_rejects,
        )
        return 0 if print_embedded(report) else FAILED


@dataclass(frozen=True, kw_only=True)
class Import:
    """Import vectors that were embedded elsewhere: img_emb/*.npy, text_emb/*.npy and metadata/*.parquet, as
    clip-retrieval writes them; .npy files; or parquet and lance tables with a column of vectors."""

    root: Annotated[str, Positional, arg(metavar="NPY_ROOT")]
    """Folder that holds those folders or files, or one table: a local path or an fsspec URL."""
    memory: str
    """Folder of the memory: a local path or an fsspec URL."""
    model: str | None = None
    """The model they were made with, as for embed; without it only vectors can be asked for."""
    pretrained: str | None = None
    """A pretrained tag or a weights file of --model."""
    columns: tuple[str, ...] = ()
    """Metadata fields to keep as columns, as name:type with type string, int, float or bool."""
    caption_key: str = CAPTION
    """Metadata column of the captions; as long as it is caption, one called text, alt or title will do."""
    url_key: str | None = None
    """Metadata column of the addresses; unless given, url, image_url or uri, in capitals or not."""
    index: Path | None = None
    """A faiss index published with them, to be used as it is: one file, or a folder with populated.index and
    merged_index.ivfdata."""
    keys: Annotated[Modality, arg(name="modality", aliases=["--keys"])] = "image"
    """Which vectors --index holds, and files or columns of vectors that are not called after images or texts."""
    on: OmitArgPrefixes[RunnerOptions] = field(default_factory=RunnerOptions)

    def run(self) -> int:
        from memory_builder.embedding.driver import (
            import_embeddings,
        )
        from memory_builder.indexing.driver import (
            adopt,
        )

        encoder = named_encoder(self.model, self.pretrained)
        config = EmbedConfig(columns=self.columns, caption_key=self.caption_key, url_key=self.url_key)
        runner = self.on.start()
        report = import_embeddings(
            self.root, self.memory, encoder=encoder, config=config, runner=runner, keys=self.keys
        )
        if not print_embedded(report, can_retry=False):
            return FAILED
        if self.index is not None:
            adopt(self.memory, self.root, self.index, keys=self.keys, runner=runner)
        return 0


@dataclass(frozen=True, kw_only=True)
class Index:
    """Index a memory's vectors and tune the search to a target recall. Run it again to go on."""

    memory: Annotated[str, Positional, arg(metavar="MEMORY")]
    """Folder of the memory."""
    keys: Annotated[Literal["image", "text", "both"], arg(name="modality", aliases=["--keys"])] = "both"
    """Which vectors to index; both: those there are."""
    config: OmitArgPrefixes[IndexConfig] = field(default_factory=IndexConfig)
    on: OmitArgPrefixes[RunnerOptions] = field(default_factory=RunnerOptions)

    def run(self) -> int:
        from memory_builder.indexing.driver import (
            index,
            present_keys,
        )
        from memory_builder.maintenance.info import read_info

        started = time.monotonic()
        keys: tuple[Modality, ...] = present_keys(Store(self.memory)) if self.keys == "both" else (self.keys,)
        index(self.memory, keys=keys, config=self.config, runner=self.on.start())
        print_indexes(read_info(Store(self.memory)).indexes)
        print(duration(time.monotonic() - started))
        return 0
