"""Log handlers of the command, for standard error: plain lines, and on a terminal a progress bar below them."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from memory_builder.base.log import logger
from memory_builder.base.progress import Progress


class LineHandler(logging.Handler):
    """Prints plain lines, warnings with a prefix."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        print(f"{prefix}{record.getMessage()}", file=sys.stderr, flush=True)


class BarHandler(LineHandler):
    """Prints lines, and redraws a bar for the running stage."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        super().__init__()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
        )
        self._bars = RichProgress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
        self._stage: Progress | None = None

    def emit(self, record: logging.LogRecord) -> None:
        progress: Progress | None = getattr(record, "progress", None)
        if progress is None:
            self._bars.console.print(
                ("warning: " * (record.levelno >= logging.WARNING)) + record.getMessage(), markup=False
            )
            return
        if progress is not self._stage:
            self._stage, started = progress, time.monotonic()
            for task in self._bars.task_ids:
                self._bars.remove_task(task)
            self._bars.add_task(progress.stage, total=progress.n_planned, completed=progress.n_done, rate="")
            progress.watch = lambda: self._redraw(progress, started)
            self._bars.start()
        if progress.n_done + progress.n_failed == progress.n_planned:
            self.close()
            super().emit(record)

    def _redraw(self, progress: Progress, started: float) -> None:
        elapsed_s = max(1e-3, time.monotonic() - started)
        rate = f"{progress.n_pairs / elapsed_s:,.0f} pairs/s" if progress.n_pairs else ""
        for task in self._bars.task_ids:
            self._bars.update(task, completed=progress.n_done + progress.n_failed, rate=rate)

    def close(self) -> None:
        self._bars.stop()
        super().close()


@contextmanager
def logging_to_stderr() -> Iterator[None]:
    """Show the library's log while a command runs, unless a handler exists already."""
    if any(isinstance(handler, LineHandler) for handler in logger.handlers):
        yield
        return
    handler: logging.Handler = BarHandler() if sys.stderr.isatty() else LineHandler()
    before, propagated = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False  # libraries configure the root logger, which would show each line again
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        logger.propagate = propagated
        handler.close()
