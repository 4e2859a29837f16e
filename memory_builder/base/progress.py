"""Progress of a stage: items done and failed, pairs a second, time left; logged as a line now and then."""

import time
from collections.abc import Callable

from memory_builder.base.log import logger


class Progress:
    """Counts the items of this run. The state of a memory is in its commit records, which ``info`` reads.

    Each logged line carries this object as ``record.progress``, from which a terminal draws a bar.
    """

    def __init__(self, stage: str, *, n_planned: int, n_done: int, unit: str = "shards", every_s: float = 5.0) -> None:
        self.stage = stage
        self.unit = unit
        self.n_planned = n_planned
        self.n_done = n_done
        self.n_failed = 0
        self.n_pairs = 0
        self._n_at_start = n_done
        self._started = time.monotonic()
        self._every_s = every_s
        self._last = self._started
        self.watch: Callable[[], None] | None = None
        """Called at each item, to redraw a progress bar."""
        self._log(0.0)

    def advance(self, *, n_pairs: int = 0, failed: bool = False) -> None:
        """Count one more item."""
        self.n_done += not failed
        self.n_failed += failed
        self.n_pairs += n_pairs
        if self.watch is not None:
            self.watch()
        now = time.monotonic()
        if now - self._last >= self._every_s or self.n_done + self.n_failed == self.n_planned:
            self._last = now
            self._log(now - self._started)

    def line(self, elapsed_s: float) -> str:
        """Format a progress line."""
        finished = self.n_done + self.n_failed - self._n_at_start
        left = self.n_planned - self.n_done - self.n_failed
        rate = f", {self.n_pairs / elapsed_s:,.0f} pairs/s" if self.n_pairs and elapsed_s else ""
        time_left = f", {duration(elapsed_s / finished * left)} left" if finished and left else ""
        failed = f", {self.n_failed} failed" if self.n_failed else ""
        return f"{self.stage}: {self.n_done}/{self.n_planned} {self.unit}{failed}{rate}{time_left}"

    def _log(self, elapsed_s: float) -> None:
        logger.info(self.line(elapsed_s), extra={"progress": self})


def duration(seconds: float) -> str:
    """90 → ``1m30s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
