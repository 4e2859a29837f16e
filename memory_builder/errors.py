"""All exceptions that memory-builder raises on purpose.

MemoryBuilderError            exit code 1: work failed
├── CorruptMemoryError        a file of the memory is missing or does not match its record
├── ConcurrentWriterError     another writer created this snapshot first
├── WorkerError               workers die before completing any item
├── StorageError              a memory's storage cannot be read or written
│   └── StorageFullError      the storage is full
├── ConnectionFailedError     a service, a Ray cluster or its job server does not answer
├── RetrieveError             choosing or writing a training subset failed
├── LossError                 a training step's loss is not finite
└── RequestError              exit code 2: the request is invalid, and nothing was changed
        ├── UsageError            an argument is invalid
        ├── SourceError           an input is missing or unreadable
        │   └── TransportFailedError  the input's storage fails: its content may be sound
        ├── EncoderError          a model cannot be loaded, or is not the memory's
        ├── ConfigMismatchError   existing files were written with another configuration
        └── IndexBuildError       an index cannot be chosen or built with these settings
"""

from typing import Any, ClassVar

BUILD_AGAIN = "build the index again (memory-builder index MEMORY): it replaces damaged files"
"""Fix for a missing or damaged index file that no record checks."""
REPAIR = "run memory-builder verify MEMORY --repair: it repairs the file, or states the loss and the fix"
"""Fix for any other missing or damaged file of a memory."""


class MemoryBuilderError(Exception):
    """Base class. The message states the problem, its location and the fix."""

    exit_code: ClassVar[int] = 1


class CorruptMemoryError(MemoryBuilderError):
    """A file of the memory is missing or does not match its record.

    Args:
        problem: the problem and its location.
        fix: what to do. ``verify`` shows the problem alone, with a fix of its own.
    """

    def __init__(self, problem: str, fix: str | None = None) -> None:
        super().__init__(f"{problem}: {fix}" if fix else problem)
        self.problem = problem
        self._fix = fix

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the error, so that workers can send it to their driver."""
        return type(self), (self.problem, self._fix)


class ConcurrentWriterError(MemoryBuilderError):
    """Another writer created this snapshot first."""


class WorkerError(MemoryBuilderError):
    """Workers die before completing any item."""


class StorageError(MemoryBuilderError):
    """A memory's storage cannot be read or written."""


class StorageFullError(StorageError):
    """The storage is full."""


class ConnectionFailedError(MemoryBuilderError):
    """A service, a Ray cluster or its job server does not answer."""


class RetrieveError(MemoryBuilderError):
    """Choosing or writing a training subset failed."""


class LossError(MemoryBuilderError):
    """A training step's loss is not finite."""


class RequestError(MemoryBuilderError):
    """The request is invalid."""

    exit_code: ClassVar[int] = 2


class UsageError(RequestError):
    """An argument is invalid."""


class SourceError(RequestError):
    """An input is missing or unreadable."""


class TransportFailedError(SourceError):
    """The storage of an input fails during reading; its content may be sound."""


class EncoderError(RequestError):
    """A model cannot be loaded, or is not the memory's."""


class ConfigMismatchError(RequestError):
    """Existing files were written with another configuration."""


class IndexBuildError(RequestError):
    """An index cannot be chosen or built with these settings."""
