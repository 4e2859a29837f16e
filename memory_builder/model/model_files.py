"""Refuse model folders whose configuration makes transformers run remote code."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from memory_builder.errors import EncoderError

LOCAL_DIR = "local-dir:"
CODE = frozenset({"trust_remote_code", "auto_map", "custom_pipelines", "custom_generate"})
"""Configuration keys that make transformers run Python files of a repository."""
MAX_FILES = 1_000
MAX_JSON_BYTES = 64 << 20


def refuse_code(folder: str) -> None:
    """Check every JSON file of a model's folder, at any depth, for remote code.

    Raises:
        EncoderError: a file requests remote code, or cannot be read.
    """
    paths = sorted(Path(folder).rglob("*.json"))
    if len(paths) > MAX_FILES:
        raise EncoderError(f"{folder} holds {len(paths):,} JSON files: name the folder of one model")
    for path in paths:
        try:
            if path.stat().st_size > MAX_JSON_BYTES:
                raise EncoderError(f"{path} is larger than {MAX_JSON_BYTES >> 20} MiB: not a model configuration")
            value = json.loads(path.read_bytes())
        except (ValueError, OSError, RecursionError) as error:
            raise EncoderError(f"{path} cannot be read ({error}): restore the model's files") from None
        refuse_code_in(value, str(path))


def refuse_code_in(config: Any, where: str) -> None:
    """Check a configuration, at any depth, for remote code.

    Raises:
        EncoderError: the configuration requests remote code.
    """
    for mapping in _mappings(config):
        for key in CODE & mapping.keys():
            if mapping[key]:
                raise EncoderError(
                    f"{where} requests remote code ({key}), which is never run: use a model that transformers supports "
                    "without it, and remove the entry"
                )


def _mappings(value: Any) -> Iterator[Mapping[str, Any]]:
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, Mapping):
            yield one
            waiting += one.values()
        elif isinstance(one, list | tuple):
            waiting += one
