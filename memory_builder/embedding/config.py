"""Settings that all rows of a memory share, and ``memory.json`` made of them."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

from memory_builder.base.arguments import several
from memory_builder.base.runner import Runner, run_one
from memory_builder.catalog.description import DESCRIPTION, Description
from memory_builder.catalog.metadata import COLUMN_TYPES, FIXED_FIELDS
from memory_builder.errors import EncoderError, UsageError
from memory_builder.model.encoder import Encoder, EncoderConfig, load_encoder
from memory_builder.model.images import MAX_PIXELS
from memory_builder.readers.read import CAPTION, Require
from memory_builder.storage.records import content_hash


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedConfig:
    """Settings that determine the bytes of a memory, besides its inputs and encoder."""

    require: Require = "both"
    """Modalities a pair must have; a pair that lacks one is a reject."""
    caption_key: str = CAPTION
    """Json field, column or member suffix that holds the caption. With the default, a .txt is used first, then fields
    named caption, text, alt or title. Of a list of captions, the first that is not blank is used."""
    image_key: str | None = None
    """Column of a table that holds the pictures, or their paths or URIs; by default the first of a usual name."""
    url_key: str | None = None
    """Json field or column that holds a pair's URL; by default url, image_url or uri, ignoring case."""
    columns: tuple[str, ...] = ()
    """Json fields to keep as metadata columns, as name:type with type string, int, float or bool."""
    batch_size: int = 256
    """Pairs per forward pass; part of the configuration because float16 rows depend on it."""
    max_pixels: int = MAX_PIXELS
    """Pixels of the largest picture; a larger one is a reject."""
    jpeg_draft: bool = False
    """Decode large JPEGs at reduced detail: faster, with slightly different vectors."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", several(self.columns))
        if self.batch_size < 1:
            raise UsageError(f"--batch-size {self.batch_size}: at least 1")
        for column in self.columns:
            name, _, kind = column.partition(":")
            if kind not in COLUMN_TYPES or not name or name in dict(FIXED_FIELDS) or name == "extra":
                raise UsageError(
                    f"--columns {column}: expected name:type, type one of {', '.join(COLUMN_TYPES)}, and a name that "
                    f"is not already a column ({', '.join(name for name, _ in FIXED_FIELDS)})"
                )

    @property
    def column_types(self) -> dict[str, str]:
        return {name: kind for name, _, kind in (column.partition(":") for column in self.columns)}


def describe_vectors(d: int, config: EmbedConfig) -> Description:
    """Make ``memory.json`` for vectors of an unknown model; that memory can only be searched with vectors."""
    return Description(
        model="",
        pretrained=None,
        fingerprint="",
        d=d,
        columns=config.column_types,
        config={"d": d, "columns": list(config.columns)} | _changed(config),
        config_hash=content_hash({"d": d, "fingerprint": ""} | _changed(config)),
    )


def _changed(config: EmbedConfig) -> dict[str, Any]:
    return {f.name: getattr(config, f.name) for f in fields(config) if getattr(config, f.name) != f.default}


def describe(encoder: Encoder, config: EmbedConfig) -> Description:
    """Make ``memory.json`` for an encoder and config; load the tokenizer too, so that its errors come early."""
    encoder.tokenizer  # noqa: B018
    decisive: dict[str, Any] = {
        "fingerprint": encoder.fingerprint,
        "precision": encoder.config.resolved_precision(),
    }
    if encoder.config.compile:
        decisive["compile"] = True
    return Description(
        model=encoder.config.model,
        pretrained=encoder.config.pretrained,
        fingerprint=encoder.fingerprint,
        d=encoder.d,
        columns=config.column_types,
        config={
            **asdict(config),
            "columns": list(config.columns),
            **decisive,
        },
        config_hash=content_hash(_changed(config) | decisive),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class DescribeTask:
    """Make ``memory.json``, the only item, on a worker, whose device determines the precision."""

    encoder: EncoderConfig
    config: EmbedConfig
    wants_gpu: bool = True

    def start(self) -> Callable[[str], Description]:
        encoder = load_encoder(self.encoder)
        return lambda _: describe(encoder, self.config)


def describe_embeddings(
    encoder: EncoderConfig | None, d: int, config: EmbedConfig, runner: Runner, whose: str
) -> Description:
    """Make ``memory.json`` for embeddings of width d that an encoder made, or none that is known.

    Args:
        whose: the embeddings, for the message.

    Raises:
        EncoderError: the model cannot be loaded, or makes vectors of another width.
    """
    if encoder is None:
        return describe_vectors(d, config)
    description = run_one(runner, DescribeTask(encoder=encoder, config=config), DESCRIPTION)
    if description.d != d:
        raise EncoderError(f"{description.model} makes vectors of width {description.d}, {whose} have {d}")
    return description
