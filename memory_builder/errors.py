"""Everything memory-builder raises on purpose.

MemoryBuilderError            exit code 1: work failed
├── CorruptMemoryError        a file of the memory is missing or is not what its record says
├── ConcurrentWriterError     another writer created this state first
├── WorkerError               workers die before doing any work
├── StorageError              a memory's storage cannot be read or written
│   └── StorageFullError      the storage has no room left
├── ConnectionFailedError     a service, a Ray cluster or its job server does not answer
├── RetrieveError             the choice or writing of a training subset failed
├── LossError                 a training step's loss is not finite
└── RequestError              exit code 2: it cannot be done as asked, and nothing was changed
    ├── UsageError            an argument is wrong
    ├── SourceError           an input cannot be found or read
    │   └── TransportFailedError  its storage fails: the content may be sound
    ├── EncoderError          a model cannot be loaded, or is not the one the memory was built with
    ├── ConfigMismatchError   what lies on disk was written with another configuration
    └── IndexBuildError       an index cannot be chosen or built as asked
"""

from typing import Any, ClassVar

BUILD_AGAIN = "build the index again (memory-builder index MEMORY): what is damaged is made anew"
"""What helps where a file of an index that is not checked by a record is missing or damaged."""
REPAIR = "run memory-builder verify MEMORY --repair: it mends the file, or says what is lost and what to do then"
"""What helps where any other file of a memory is."""


class MemoryBuilderError(Exception):
    """Base class. The message names what is wrong, where, and the fix."""

    exit_code: ClassVar[int] = 1


class CorruptMemoryError(MemoryBuilderError):
    """A file of the memory is missing or is not what its record says.

    Args:
        problem: what is wrong, and where.
        fix: what helps. ``verify`` shows the problem alone, and says itself what can be done.
    """

    def __init__(self, problem: str, fix: str | None = None) -> None:
        super().__init__(f"{problem}: {fix}" if fix else problem)
        self.problem = problem
        self._fix = fix

    def __reduce__(self) -> tuple[Any, ...]:
        """Workers send it to their driver."""
        return type(self), (self.problem, self._fix)


class ConcurrentWriterError(MemoryBuilderError):
    """Another writer created this state first."""


class WorkerError(MemoryBuilderError):
    """Workers die before doing any work."""


class StorageError(MemoryBuilderError):
    """A memory's storage cannot be read or written."""


class StorageFullError(StorageError):
    """The storage has no room left."""


class ConnectionFailedError(MemoryBuilderError):
    """A service, a Ray cluster or its job server does not answer."""


class RetrieveError(MemoryBuilderError):
    """The choice or writing of a training subset failed."""


class LossError(MemoryBuilderError):
    """A training step's loss is not finite."""


class RequestError(MemoryBuilderError):
    """It cannot be done as asked."""

    exit_code: ClassVar[int] = 2


class UsageError(RequestError):
    """An argument is wrong."""


class SourceError(RequestError):
    """An input cannot be found or read."""


class TransportFailedError(SourceError):
    """The storage of an input fails while it is read; its content may be sound."""


class EncoderError(RequestError):
    """A model cannot be loaded, or is not the one the memory was built with."""


class ConfigMismatchError(RequestError):
    """What lies on disk was written with another configuration."""


class IndexBuildError(RequestError):
    """An index cannot be chosen or built as asked."""
