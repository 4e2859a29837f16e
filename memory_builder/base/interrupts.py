"""SIGTERM, which ends a job on a cluster or a container, ends a command as Ctrl-C does: it lets go of what it holds."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

INTERRUPTED, TERMINATED = 130, 143
"""Exit codes, as the shell says of programs that Ctrl-C and SIGTERM ended."""


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt here, once; Ray passes no other exception on."""
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
    """Whether a block of ``sigterm_interrupts`` is under way and was not ended by it."""
    return signal.getsignal(signal.SIGTERM) is _interrupt


def take_sigterm_again() -> None:
    """Put our handler back in the place of a library's: Ray's prints its stacks and aborts."""
    signal.signal(signal.SIGTERM, _interrupt)


def exit_code() -> int:
    """Of a command that KeyboardInterrupt ended."""
    return TERMINATED if signal.getsignal(signal.SIGTERM) is signal.SIG_IGN else INTERRUPTED


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one does not cut short what the first began
    raise KeyboardInterrupt
