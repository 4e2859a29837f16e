"""Make SIGTERM, which ends cluster jobs and containers, stop a command as Ctrl-C does: with its cleanup."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

INTERRUPTED, TERMINATED = 130, 143
"""Exit codes that a shell reports for programs ended by Ctrl-C and SIGTERM."""


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Raise KeyboardInterrupt in this block at the first SIGTERM; Ray passes no other exception on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
            signal.signal(signal.SIGTERM, before)


def is_sigterm_ours() -> bool:
    """Whether ``sigterm_interrupts`` is active and no SIGTERM came yet."""
    return signal.getsignal(signal.SIGTERM) is _interrupt


def restore_sigterm_handler() -> None:
    """Reinstall our SIGTERM handler over a library's: Ray's prints its stacks and aborts."""
    signal.signal(signal.SIGTERM, _interrupt)


def exit_code() -> int:
    """Exit code of a command that KeyboardInterrupt ended."""
    return TERMINATED if signal.getsignal(signal.SIGTERM) is signal.SIG_IGN else INTERRUPTED


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second SIGTERM does not interrupt the cleanup
    raise KeyboardInterrupt
