"""Process the next few items in threads while the current one is used, and yield results in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], threads: ThreadPoolExecutor, window: int
) -> Iterator[Result]:
    """``map`` in threads; at most ``window`` results are held, whatever the number of items."""
    queue: deque[Future[Result]] = deque()
    for item in items:
        queue.append(threads.submit(function, item))
        if len(queue) >= window:
            yield queue.popleft().result()
    while queue:
        yield queue.popleft().result()
