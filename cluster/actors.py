"""Ray actors that run the library's pure functions."""

import os
from collections.abc import Callable
from typing import Any

import ray
from ray import cloudpickle

from memory_builder.base.runner import Task


class Worker:
    """One process of a pool, with ``threads`` threads for torch, faiss and the decoders."""

    def __init__(self, threads: int) -> None:
        # Unpickling the task imports torch and faiss, which read this at import.
        os.environ["OMP_NUM_THREADS"] = str(threads)

    def start(self, task: Task[Any, Any]) -> str:
        """Prepare the task; returns this worker's node id.

        Not part of the constructor: an exception there reaches the driver as text only.
        """
        self._work = _portable(task.start)()
        node: str = ray.get_runtime_context().get_node_id()
        return node

    def work(self, item: Any) -> Any:
        """Process one item."""
        return _portable(self._work)(item)


def _portable(work: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``work`` so that an exception that cannot be pickled becomes a RuntimeError."""

    def call(*args: Any) -> Any:
        try:
            return work(*args)
        except Exception as error:
            try:
                cloudpickle.loads(cloudpickle.dumps(error))
            except Exception:
                raise RuntimeError(f"{type(error).__name__}: {error}") from error
            raise

    return call
