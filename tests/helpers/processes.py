"""Processes that end with the test that started them, however it ends."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def python(*arguments: object, **how: Any) -> Iterator["subprocess.Popen[str]"]:
    """Python with these arguments; ``how`` as for Popen. It is killed at the end if it still runs."""
    command = [sys.executable, *map(str, arguments)]
    with subprocess.Popen(command, text=True, **how) as process:
        try:
            yield process
        finally:
            process.kill()
