from .embedding.driver import embed, import_embeddings
from .errors import (
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
from .indexing.driver import index
from .memory import Memory
from .model.encoder import EncoderConfig
from .remote import RemoteMemory
from .search.hits import Hits

__version__: str
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
    "embed",
    "import_embeddings",
    "index",
]
