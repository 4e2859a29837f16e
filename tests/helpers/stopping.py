"""A runner that is killed."""

from collections.abc import Iterator
from typing import Any

from memory_builder.base.runner import LocalRunner


class Stopping(LocalRunner):
    """Stops the driver after so many pieces of work, as kill -9 does."""

    def __init__(self, after: int) -> None:
        self.left = after

    def run(self, task: Any, items: Any) -> Iterator[Any]:
        for item, result in super().run(task, items):
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            yield item, result
