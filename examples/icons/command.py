"""Run a script as a command: settings from the command line; what a user can put right is said without a trace."""

import sys
from collections.abc import Callable
from typing import TypeVar

import tyro
from iconify import IconsError

Settings = TypeVar("Settings")


def run(work: Callable[[Settings], str | None], settings: type[Settings], about: str | None, *, failed: int = 2) -> int:
    """Do the work, print the summary line if there is one, and return the exit code.

    Args:
        work: what the command does.
        settings: dataclass of its options.
        about: what `--help` says of it.
        failed: exit code where an IconsError says why the work cannot be done; 2 is wrong usage.
    """
    try:
        told = work(tyro.cli(settings, description=about))
    except IconsError as error:
        print(f"error: {error}", file=sys.stderr)
        return failed
    if told is not None:
        print(told)
    return 0
