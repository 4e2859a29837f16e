"""What the files beside a model's weights may say: how it is built, and never that code of its own is to be run."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from memory_builder.errors import EncoderError

LOCAL_DIR = "local-dir:"
CODE = frozenset({"trust_remote_code", "auto_map", "custom_pipelines", "custom_generate"})
"""Keys by which transformers is told to run Python files of a repository."""
MAX_FILES = 1_000
MAX_JSON_BYTES = 64 << 20


def refuse_code(folder: str) -> None:
    """Read every JSON file of a model's folder, at any depth.

    Raises:
        EncoderError: one asks for code to be run, or cannot be read.
    """
    paths = sorted(Path(folder).rglob("*.json"))
    if len(paths) > MAX_FILES:
        raise EncoderError(f"{folder} holds {len(paths):,} JSON files: name the folder of one model")
    for path in paths:
        try:
            if path.stat().st_size > MAX_JSON_BYTES:
                raise EncoderError(f"{path} is larger than {MAX_JSON_BYTES >> 20} MiB: no configuration of a model")
            value = json.loads(path.read_bytes())
        except (ValueError, OSError, RecursionError) as error:
            raise EncoderError(f"{path} cannot be read ({error}): bring the model's files back") from None
        refuse_code_in(value, str(path))


def refuse_code_in(config: Any, where: str) -> None:
    """Look through a configuration, at any depth.

    Raises:
        EncoderError: it asks for code to be run.
    """
    for mapping in _mappings(config):
        for key in CODE & mapping.keys():
            if mapping[key]:
                raise EncoderError(
                    f"{where} asks for code of the model's own to be run ({key}), which is never done: use a model "
                    "that transformers knows by itself, and remove the entry"
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
