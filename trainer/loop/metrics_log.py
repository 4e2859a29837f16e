"""``RUN/metrics.jsonl``, TensorBoard's event file, and progress lines on standard error."""

import json
import math
import resource
import time
from collections.abc import Mapping
from typing import Any

import torch

from memory_builder.base.log import logger
from memory_builder.base.progress import duration
from memory_builder.storage.store import Store

NAME = "metrics.jsonl"
EVERY_S = 5.0
"""Seconds between writes of the file, which is replaced whole, and between progress lines."""


class MetricsLog:
    """The metrics of a run, one line for each logged step; lines of steps after ``start`` are dropped.

    Args:
        run: folder of the run.
        start: steps taken so far.
        n_steps: steps of the whole run.
        batch_size: global batch size.
    """

    def __init__(self, run: Store, start: int, n_steps: int, batch_size: int) -> None:
        self._run, self._n_steps, self._batch_size = run, n_steps, batch_size
        self._lines = [line for line in _read(run) if _step_of(line) <= start]
        self._started = self._last_shown = time.monotonic()
        self._start = start
        self._board = _board(run, start)

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of a step."""
        elapsed = time.monotonic() - self._started
        rate = (step - self._start) * self._batch_size / elapsed
        line = {"step": step, **metrics, "pairs_per_s": round(rate, 2), "memory_bytes": memory_bytes()}
        self._lines.append(json.dumps(line))
        if self._board is not None:
            for name, value in line.items():
                self._board.add_scalar(name, value, step)
        if time.monotonic() - self._last_shown > EVERY_S or step in (self._start + 1, self._n_steps):
            self._last_shown = time.monotonic()
            left = elapsed / (step - self._start) * (self._n_steps - step)
            logger.info(
                f"step {step:,}/{self._n_steps:,}: loss {metrics['loss']:.4f}, {rate:,.0f} pairs/s, "
                f"{memory_bytes() / 1e9:.1f} GB" + (f", {duration(left)} left" if left else "")
            )
            self.write()

    def write(self) -> None:
        """Write all lines so far."""
        self._run.put(NAME, "".join(f"{line}\n" for line in self._lines).encode())
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        """Write all lines and close TensorBoard's file."""
        self.write()
        if self._board is not None:
            self._board.close()


def memory_bytes() -> int:
    """Peak memory so far: of the GPU if there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _step_of(line: str) -> float:
    """The step of a line; infinite for a damaged line, so that it is dropped."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return math.inf


def _read(run: Store) -> list[str]:
    try:
        return run.read(NAME).decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []


def _board(run: Store, start: int) -> Any:
    """TensorBoard's writer, or None on an object store, which cannot append."""
    if not run.is_local:
        return None
    from tensorboardX import SummaryWriter  # torch's own needs all of tensorboard

    return SummaryWriter(run.full("tensorboard"), purge_step=start + 1)
