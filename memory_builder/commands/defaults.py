"""Defaults of ``embed`` and ``import`` into an existing memory: its own settings."""

from typing import Any

import tyro

from memory_builder.embedding.settings import config_of, default_encoder, existing_description
from memory_builder.errors import MemoryBuilderError
from memory_builder.model.encoder import EncoderConfig
from memory_builder.storage.store import Store


def memory_defaults(kind: Any, arguments: list[str]) -> Any:
    """Build the command ``kind`` with the settings of the memory at --memory; None if no memory exists.

    Without --model, the memory's model is the default.
    """
    root = _value_of("--memory", arguments)
    if root is None:
        return None
    try:
        description = existing_description(Store(root))
        if description is None:
            return None
        config = config_of(description)
    except (MemoryBuilderError, OSError, ValueError, TypeError, ImportError):  # the command itself raises the error
        return None
    model = _value_of("--model", arguments)
    encoder = default_encoder(description, root) if model is None else EncoderConfig(model=model)
    if kind.__name__ == "Embed":
        return None if encoder is None else kind(source=(), memory=root, encoder=encoder, pairs=config)
    return kind(
        root=tyro.MISSING,
        memory=root,
        model=encoder.model if encoder else None,
        pretrained=encoder.pretrained if encoder else None,
        columns=config.columns,
        caption_key=config.caption_key,
        url_key=config.url_key,
    )


def _value_of(flag: str, arguments: list[str]) -> str | None:
    for i, argument in enumerate(arguments):
        if argument == flag and i + 1 < len(arguments):
            return arguments[i + 1]
        if argument.startswith(f"{flag}="):
            return argument.removeprefix(f"{flag}=")
    return None
