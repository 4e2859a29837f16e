"""One at a time holds a lock, also when several find one that was abandoned."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from memory_builder import locks
from memory_builder.locks import turn
from memory_builder.storage import Store

if TYPE_CHECKING:
    pass

ABANDONED = json.dumps({"host": "elsewhere", "pid": 1, "since_s": 0.0}).encode()


@pytest.mark.parametrize("abandoned", [False, True])
def test_one_at_a_time(store: Store, monkeypatch: pytest.MonkeyPatch, abandoned: bool) -> None:
    monkeypatch.setattr(locks, "PAUSE_S", 0.001)
    if abandoned:
        store.put("a.lock", ABANDONED)
    inside: list[int] = []

    def hold(writer: int) -> None:
        for _ in range(3):
            with turn(store, "a.lock"):
                inside.append(writer)
                assert inside == [writer]
                inside.remove(writer)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(hold, range(4)))
    assert store.list("") == []


class Slow(Store):
    """Something happens between its first look at a lock and what it does then."""

    meanwhile: Any = None

    def read(self, path: str) -> bytes:
        data = super().read(path)
        if self.meanwhile and path == "a.lock":
            do, self.meanwhile = self.meanwhile, None
            do()
        return data


def test_who_is_late_at_an_abandoned_lock_does_not_take_that_of_who_was_not(tmp_path: Path) -> None:
    Store(tmp_path).put("a.lock", ABANDONED)
    held, go_on, order = threading.Event(), threading.Event(), []

    def be_first() -> None:
        with turn(Store(tmp_path), "a.lock"):
            held.set()
            go_on.wait()
            order.append("first")

    first = threading.Thread(target=be_first)
    late = Slow(tmp_path)
    late.meanwhile = lambda: (first.start(), held.wait())
    threading.Timer(0.5, go_on.set).start()
    with turn(late, "a.lock"):
        order.append("late")
    first.join()
    assert order == ["first", "late"]


def test_a_lock_that_was_taken_over_is_not_removed_by_who_held_it(store: Store) -> None:
    with turn(store, "a.lock"):
        store.put("a.lock", b"of another")
    assert store.read("a.lock") == b"of another"


def test_a_lock_is_as_old_as_it_is_held_not_as_it_was_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, now = Store(tmp_path), [1000.0]
    store.put("a.lock", json.dumps({"host": "elsewhere", "pid": 1, "since_s": 1000.0}).encode())

    def sleep(_: float) -> None:
        now[0] += 7

    monkeypatch.setattr(locks, "time", SimpleNamespace(time=lambda: now[0], sleep=sleep))
    with turn(store, "a.lock"):
        assert json.loads(store.read("a.lock"))["since_s"] == now[0] > 1060
