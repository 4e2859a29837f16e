"""Thin shells that run our pure functions in Ray's worker processes."""

import os
from collections.abc import Callable
from typing import Any

import ray
from ray import cloudpickle

from memory_builder.base.runner import Task


class Worker:
    """One process of a pool, with ``threads`` threads for torch, faiss and the decoders."""

    def __init__(self, threads: int) -> None:
        # The task brings torch and faiss with it, and they read this as they are loaded.
        os.environ["OMP_NUM_THREADS"] = str(threads)

    def start(self, task: Task[Any, Any]) -> str:
        """Prepare the task; the answer, this worker's node id, says that the worker is up.

        Not part of the constructor: of an exception there, only the text reaches the driver.
        """
        self._work = _portable(task.start)()
        node: str = ray.get_runtime_context().get_node_id()
        return node

    def work(self, item: Any) -> Any:
        """Do one item."""
        return _portable(self._work)(item)


def _portable(work: Callable[..., Any]) -> Callable[..., Any]:
    """``work``, but an exception that would not survive the way to the driver becomes a RuntimeError that does."""

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
