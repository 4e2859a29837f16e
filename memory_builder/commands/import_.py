"""``memory-builder import``: import embeddings, and optionally their index, published elsewhere."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from memory_builder.base.types import Modality
from memory_builder.commands.console import print_embedded
from memory_builder.commands.options import FAILED, RunnerOptions
from memory_builder.embedding.config import EmbedConfig
from memory_builder.model.encoder import named_encoder
from memory_builder.readers.read import CAPTION


@dataclass(frozen=True, kw_only=True)
class Import:
    """Import embeddings published elsewhere: clip-retrieval folders, .npy files, parquet or lance tables."""

    root: Annotated[str, Positional, arg(metavar="NPY_ROOT")]
    """Folder of img_emb/*.npy, text_emb/*.npy and metadata/*.parquet, of .npy files or of vector tables, or
    one vector table: a local path or an fsspec URL."""
    memory: str
    """Folder of the memory: a local path or an fsspec URL."""
    model: str | None = None
    """Model of the embeddings, as for embed (default: none, and only vectors can be searched with)."""
    pretrained: str | None = None
    """Pretrained tag or weights file of --model."""
    columns: tuple[str, ...] = ()
    """Metadata fields to keep as columns, as name:type with type string, int, float or bool."""
    caption_key: str = CAPTION
    """Metadata column of the captions; if left at caption, a column text, alt or title is used as well."""
    url_key: str | None = None
    """Metadata column of the URLs (default: url, image_url or uri, in any case)."""
    index: Path | None = None
    """Published faiss index of these embeddings, used without training: one file, or a folder with populated.index and
    merged_index.ivfdata."""
    modality: Annotated[Modality, arg(name="modality", aliases=["--keys"])] = "image"
    """Modality of --index, and of files or columns of vectors whose names state neither image nor text."""
    runner: OmitArgPrefixes[RunnerOptions] = field(default_factory=RunnerOptions)

    def run(self) -> int:
        from memory_builder.embedding.driver import import_embeddings
        from memory_builder.indexing.driver import adopt

        encoder = named_encoder(self.model, self.pretrained)
        config = EmbedConfig(columns=self.columns, caption_key=self.caption_key, url_key=self.url_key)
        runner = self.runner.start()
        report = import_embeddings(
            self.root, self.memory, encoder=encoder, config=config, runner=runner, modality=self.modality
        )
        if not print_embedded(report, can_retry=False):
            return FAILED
        if self.index is not None:
            adopt(self.memory, self.root, self.index, modality=self.modality, runner=runner)
        return 0
