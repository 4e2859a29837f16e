"""``RUN/metrics.jsonl``, TensorBoard's file beside it, and a line to whoever watches."""

import json
import math
import resource
import time
from collections.abc import Mapping
from typing import Any

import torch

from memory_builder.base.progress import duration, say
from memory_builder.storage.store import Store

NAME = "metrics.jsonl"
EVERY_S = 5.0
"""Between two writes of the file, which is replaced whole, and between two lines."""


class Log:
    """The figures of a run, a line each; those of steps that will be taken again are dropped.

    Args:
        run: where.
        start: steps taken so far.
        n_steps: of the whole run.
        batch_size: pairs of a step, over all workers.
    """

    def __init__(self, run: Store, start: int, n_steps: int, batch_size: int) -> None:
        self._run, self._n_steps, self._batch_size = run, n_steps, batch_size
        self._lines = [line for line in _read(run) if _step_of(line) <= start]
        self._started = self._told = time.monotonic()
        self._start = start
        self._board = _board(run, start)

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        """Log what came of a step."""
        elapsed = time.monotonic() - self._started
        rate = (step - self._start) * self._batch_size / elapsed
        line = {"step": step, **figures, "pairs_per_s": round(rate, 2), "memory_bytes": memory_bytes()}
        self._lines.append(json.dumps(line))
        if self._board is not None:
            for name, value in line.items():
                self._board.add_scalar(name, value, step)
        if time.monotonic() - self._told > EVERY_S or step in (self._start + 1, self._n_steps):
            self._told = time.monotonic()
            left = elapsed / (step - self._start) * (self._n_steps - step)
            say(
                f"step {step:,}/{self._n_steps:,}: loss {figures['loss']:.4f}, {rate:,.0f} pairs/s, "
                f"{memory_bytes() / 1e9:.1f} GB" + (f", {duration(left)} left" if left else "")
            )
            self.write()

    def write(self) -> None:
        """Put what there is so far on disk."""
        self._run.put(NAME, "".join(f"{line}\n" for line in self._lines).encode())
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        """Write, and let go of TensorBoard's file."""
        self.write()
        if self._board is not None:
            self._board.close()


def memory_bytes() -> int:
    """The most memory held so far: on the GPU where there is one, else by this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _step_of(line: str) -> float:
    """The step that a line is of; that of a damaged line never comes."""
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
    """TensorBoard's writer; on an object store, which cannot append, there is none."""
    if not run.is_local:
        return None
    from tensorboardX import SummaryWriter  # torch's own needs all of tensorboard

    return SummaryWriter(run.full("tensorboard"), purge_step=start + 1)
