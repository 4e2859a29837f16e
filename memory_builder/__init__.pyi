from .base.runner import LocalRunner, Runner
from .customise import (
    DataConfig,
    FusionConfig,
    GatedConfig,
    LookupConfig,
    LoopConfig,
    NeighbourConfig,
    OptimizerConfig,
    ReactConfig,
    load_react,
    load_reco,
    train_react,
    train_reco,
)
from .embedding.config import EmbedConfig
from .embedding.driver import EmbedReport, embed, import_embeddings
from .errors import (
    ConcurrentWriterError,
    ConfigMismatchError,
    ConnectionFailedError,
    CorruptMemoryError,
    EncoderError,
    IndexBuildError,
    LossError,
    MemoryBuilderError,
    RequestError,
    RetrieveError,
    SourceError,
    StorageError,
    StorageFullError,
    TransportFailedError,
    UsageError,
    WorkerError,
)
from .indexing.config import IndexConfig
from .indexing.driver import adopt, index
from .memory import Memory
from .model.encoder import Encoder, EncoderConfig
from .ray_runner import RayRunner
from .remote import RemoteMemory
from .retrieval.classes import Class
from .retrieval.config import AskConfig, RetrieveConfig
from .retrieval.copies.thresholds import Thresholds
from .retrieval.driver import retrieve
from .retrieval.selection import SelectConfig
from .search.hits import Hits
from .search.searchable import Searchable
from .serving import ServiceConfig, serve

__version__: str
__all__ = [
    "AskConfig",
    "Class",
    "ConcurrentWriterError",
    "ConfigMismatchError",
    "ConnectionFailedError",
    "CorruptMemoryError",
    "DataConfig",
    "EmbedConfig",
    "EmbedReport",
    "Encoder",
    "EncoderConfig",
    "EncoderError",
    "FusionConfig",
    "GatedConfig",
    "Hits",
    "IndexBuildError",
    "IndexConfig",
    "LocalRunner",
    "LookupConfig",
    "LoopConfig",
    "LossError",
    "Memory",
    "MemoryBuilderError",
    "NeighbourConfig",
    "OptimizerConfig",
    "RayRunner",
    "ReactConfig",
    "RemoteMemory",
    "RequestError",
    "RetrieveConfig",
    "RetrieveError",
    "Runner",
    "Searchable",
    "SelectConfig",
    "ServiceConfig",
    "SourceError",
    "StorageError",
    "StorageFullError",
    "Thresholds",
    "TransportFailedError",
    "UsageError",
    "WorkerError",
    "adopt",
    "embed",
    "import_embeddings",
    "index",
    "load_react",
    "load_reco",
    "retrieve",
    "serve",
    "train_react",
    "train_reco",
]
