"""Settings of an existing memory: defaults for embedding into it, compared before a model is loaded."""

from contextlib import suppress
from dataclasses import fields, replace
from typing import Any

from memory_builder.base.log import logger
from memory_builder.catalog.commits import record_names
from memory_builder.catalog.description import DESCRIPTION, Description, read_description
from memory_builder.catalog.manifest import Manifest
from memory_builder.catalog.plan import PLAN
from memory_builder.catalog.trusted_sources import PLAIN_NAME, encoder_of
from memory_builder.embedding.config import EmbedConfig
from memory_builder.errors import ConfigMismatchError, MemoryBuilderError, UsageError
from memory_builder.model.encoder import EncoderConfig
from memory_builder.storage.locks import hold_lock
from memory_builder.storage.store import Store


def existing_description(store: Store) -> Description | None:
    """Read ``memory.json``; None if it is missing or damaged."""
    with suppress(MemoryBuilderError, OSError):
        return read_description(store)
    return None


def config_of(description: Description) -> EmbedConfig:
    """Return the configuration that a memory's pairs were read with."""
    return EmbedConfig(**settings_in(EmbedConfig, description.config))


def default_encoder(description: Description, root: str) -> EncoderConfig | None:
    """Return the memory's own model as the default for embedding; None if it is not trusted.

    See ``trusted_sources.trusted_encoder``.
    """
    with suppress(MemoryBuilderError):
        named = encoder_of(description, root)
        return replace(named, **settings_in(EncoderConfig, description.config)) if named.model else None
    return None


def settings_in(kind: Any, config: dict[str, Any]) -> dict[str, Any]:
    """Return a memory's settings that are fields of a dataclass; fields newer than the memory are left out."""
    names = {field.name for field in fields(kind)} & config.keys() - {"model", "pretrained"}
    known = {name: config[name] for name in names}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in known.items()}


def settings_for_embed(
    store: Store, encoder: EncoderConfig | None, config: EmbedConfig | None
) -> tuple[EncoderConfig, EmbedConfig]:
    """Return the model and settings to embed with: those given, else the memory's own, else defaults.

    Raises:
        UsageError: no model is given, and the memory does not exist or is not trusted to name one.
    """
    description = existing_description(store)
    if encoder is None and description is not None:
        encoder = default_encoder(description, store.root)
    if encoder is None:
        raise UsageError(f"{store.root} does not exist, or its model is not trusted: name a model (model=…)")
    return encoder, config or (config_of(description) if description else EmbedConfig())


def settings_for_import(store: Store, config: EmbedConfig) -> EmbedConfig:
    """Return the settings of an import: the given ones, and the memory's own for those that do not affect imports."""
    existing = existing_description(store)
    if existing is None:
        return config
    decisive = {name: getattr(config, name) for name in ("columns", "caption_key", "url_key")}
    return replace(config_of(existing), **decisive)


def check_settings(store: Store, encoder: EncoderConfig | None, config: EmbedConfig) -> None:
    """Compare the settings that need no model. A memory without rows takes the new settings.

    Raises:
        ConfigMismatchError: the memory holds rows and was written with other settings.
    """
    existing = existing_description(store)
    if existing is None:
        return
    differing = _differing(existing, encoder, config)
    if not differing:
        return
    n_rows = Manifest.read(store).n_rows
    if n_rows == 0:
        logger.info(f"{store.root} holds no rows: it takes the new settings ({', '.join(sorted(differing))})")
        _forget(store)
        return
    changes = ", ".join(f"{name}: {old!r} before, {new!r} now" for name, (old, new) in sorted(differing.items()))
    raise ConfigMismatchError(
        f"{store.root} holds {n_rows:,} rows that were written with other settings ({changes}). "
        "Omit them to use the memory's own, or name another --memory folder."
    )


def _differing(existing: Description, encoder: EncoderConfig | None, config: EmbedConfig) -> dict[str, tuple[Any, Any]]:
    if not existing.fingerprint:  # a memory of vectors alone: only the columns matter
        return (
            {}
            if set(config.columns) == set(existing.config.get("columns", ()))
            else {"columns": (existing.config.get("columns", []), list(config.columns))}
        )
    own = config_of(existing)
    names = [field.name for field in fields(EmbedConfig)]
    differing = {name: (getattr(own, name), getattr(config, name)) for name in names}
    if encoder is not None and PLAIN_NAME.fullmatch(existing.model) and PLAIN_NAME.fullmatch(encoder.model):
        differing["model"] = (existing.model, encoder.model)
        tags = [
            tag for tag in (existing.pretrained, encoder.pretrained) if tag is not None and PLAIN_NAME.fullmatch(tag)
        ]
        if len(tags) == 2:  # a weights file may hold a tag's weights: fingerprints are compared later
            differing["pretrained"] = (existing.pretrained, encoder.pretrained)
    return {name: (old, new) for name, (old, new) in differing.items() if old != new}


def _forget(store: Store) -> None:
    """Remove the records of a memory without rows, so that its sources are read anew; memory.json last."""
    with hold_lock(store, "plan.lock"):
        names = [f"{folder}/{name}" for folder in ("commits", "failures") for name in record_names(store, folder)]
        for path in (*names, "manifest.parquet", PLAN, DESCRIPTION):
            with suppress(FileNotFoundError):
                store.remove(path)
