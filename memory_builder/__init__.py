"""Build a searchable memory of image-text pairs, ask it, and customise a frozen CLIP with it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memory_builder.encoder import EncoderConfig
    from memory_builder.errors import (
        ConcurrentWriterError,
        ConfigMismatchError,
        CorruptMemoryError,
        EncoderError,
        IndexBuildError,
        MemoryBuilderError,
        RequestError,
        SourceError,
        UsageError,
        WorkerError,
    )
    from memory_builder.memory import Memory
    from memory_builder.remote import RemoteMemory
    from memory_builder.scores import Hits

__version__ = "0.1.0"

_HOMES = {
    "ConcurrentWriterError": "errors",
    "ConfigMismatchError": "errors",
    "CorruptMemoryError": "errors",
    "EncoderConfig": "encoder",
    "EncoderError": "errors",
    "Hits": "scores",
    "IndexBuildError": "errors",
    "Memory": "memory",
    "MemoryBuilderError": "errors",
    "RemoteMemory": "remote",
    "RequestError": "errors",
    "SourceError": "errors",
    "UsageError": "errors",
    "WorkerError": "errors",
}


def __getattr__(name: str) -> Any:
    # torch and faiss take seconds to import: `import memory_builder` and the command's --help must not wait for them.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "ConcurrentWriterError",
    "ConfigMismatchError",
    "CorruptMemoryError",
    "EncoderConfig",
    "EncoderError",
    "Hits",
    "IndexBuildError",
    "Memory",
    "MemoryBuilderError",
    "RemoteMemory",
    "RequestError",
    "SourceError",
    "UsageError",
    "WorkerError",
    "__version__",
]
