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
    modality: Annotated[Modality, arg(name="modality", aliases=["--keys"])] = "image"
    """Which vectors --index holds, and files or columns of vectors that are not called after images or texts."""
    on: OmitArgPrefixes[RunnerOptions] = field(default_factory=RunnerOptions)

    def run(self) -> int:
        from memory_builder.embedding.driver import import_embeddings
        from memory_builder.indexing.driver import adopt

        encoder = named_encoder(self.model, self.pretrained)
        config = EmbedConfig(columns=self.columns, caption_key=self.caption_key, url_key=self.url_key)
        runner = self.on.start()
        report = import_embeddings(
            self.root, self.memory, encoder=encoder, config=config, runner=runner, modality=self.modality
        )
        if not print_embedded(report, can_retry=False):
            return FAILED
        if self.index is not None:
            adopt(self.memory, self.root, self.index, modality=self.modality, runner=runner)
        return 0
