"""One at a time holds a lock, also when several find one that was abandoned; whoever waits says for whom."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from memory_builder.errors import ConcurrentWriterError
from memory_builder.storage import locks
from memory_builder.storage.locks import hold_lock
from memory_builder.storage.store import Store

HERE = {"host": socket.gethostname(), "pid": os.getpid(), "since_s": 0.0}
ELSEWHERE = {"host": "elsewhere", "pid": 1, "since_s": 0.0}


def content(holder: dict[str, Any]) -> bytes:
    return json.dumps(holder).encode()


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks are abandoned after a second, and renewed often."""
    for name, value in {"LOCK_S": 1.0, "RENEW_S": 0.2, "GRACE_S": 0.5, "PAUSE_S": 0.01, "CHECK_S": 0.1}.items():
        monkeypatch.setattr(locks, name, value)


@pytest.mark.parametrize("abandoned", [False, True])
def test_one_at_a_time(store: Store, monkeypatch: pytest.MonkeyPatch, abandoned: bool) -> None:
    monkeypatch.setattr(locks, "PAUSE_S", 0.001)
    if abandoned:
        store.put("a.lock", content(HERE | {"pid": dead_process()}))
    inside: list[int] = []

    def hold(writer: int) -> None:
        for _ in range(3):
            with hold_lock(store, "a.lock"):
                inside.append(writer)
                assert inside == [writer]
                inside.remove(writer)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(hold, range(4)))
    assert [name for name in store.list("") if name.endswith(".lock")] == []


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
    Store(tmp_path).put("a.lock", content(HERE | {"pid": dead_process()}))
    held, go_on, order = threading.Event(), threading.Event(), []

    def be_first() -> None:
        with hold_lock(Store(tmp_path), "a.lock"):
            held.set()
            go_on.wait()
            order.append("first")

    first = threading.Thread(target=be_first)
    late = Slow(tmp_path)
    late.meanwhile = lambda: (first.start(), held.wait())
    threading.Timer(0.5, go_on.set).start()
    with hold_lock(late, "a.lock"):
        order.append("late")
    first.join()
    assert order == ["first", "late"]


def test_a_lock_that_was_taken_over_is_not_removed_by_who_held_it(store: Store) -> None:
    with hold_lock(store, "a.lock"):
        store.put("a.lock", b"of another")
    assert store.read("a.lock") == b"of another"


UNREADABLE = {
    "empty": b"",
    "half": content(ELSEWHERE)[:20],
    "list": b"[1]",
    "no pid": content({"host": "elsewhere", "since_s": 0.0}),
    "pid is a text": content(ELSEWHERE | {"pid": "1"}),
    "pid is huge": content(ELSEWHERE | {"pid": 1 << 70}),
    "time is no number": b'{"host": "elsewhere", "pid": 1, "since_s": NaN}',
    "not UTF-8": b"\xff\xfe",
    "deep": b"[" * 100_000,
}


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_lock_that_cannot_be_read_is_taken_over_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("memory_builder.storage.store.CLAIM_S", 0.5)
    store, began = Store(tmp_path), time.monotonic()
    store.put("a.lock", UNREADABLE[kind])
    with hold_lock(store, "a.lock"):
        assert 0.4 < time.monotonic() - began < 5  # it could have been in the making
    assert not store.exists("a.lock")


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("since_s", [0.0, 1e9, 1e11], ids=["long ago", "by now", "in the far future"])
def test_how_old_a_lock_is_says_the_store_and_not_its_holder(store: Store, since_s: float) -> None:
    began = time.monotonic()
    store.put("a.lock", content(ELSEWHERE | {"since_s": since_s}))
    with hold_lock(store, "a.lock"):
        assert 0.9 < time.monotonic() - began < 10


@pytest.mark.usefixtures("hurried")
def test_a_lock_that_a_clock_stamped_in_the_future_is_taken_over_when_nobody_renews_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put("a.lock", content(ELSEWHERE))
    os.utime(tmp_path / "a.lock", (time.time() + 7200,) * 2)
    began = time.monotonic()
    with hold_lock(store, "a.lock"):
        assert 0.9 < time.monotonic() - began < 5


def test_a_lock_whose_file_is_old_is_taken_over_at_once(tmp_path: Path) -> None:
    store, began = Store(tmp_path), time.monotonic()
    store.put("a.lock", content(ELSEWHERE | {"since_s": time.time()}))
    os.utime(tmp_path / "a.lock", (time.time() - 61,) * 2)
    with hold_lock(store, "a.lock"):
        assert time.monotonic() - began < 2


@pytest.mark.slow
@pytest.mark.usefixtures("hurried")
def test_a_holder_that_lives_keeps_its_lock(store: Store) -> None:
    order = []

    def wait() -> None:
        with hold_lock(store, "a.lock"):
            order.append("waiter")

    waiter = threading.Thread(target=wait)
    with hold_lock(store, "a.lock") as held:
        waiter.start()
        time.sleep(3)  # three times as long as it would take to lose it
        order.append("holder")
        held.check()
    waiter.join()
    assert order == ["holder", "waiter"]


def test_a_holder_that_lost_its_lock_notices_it_before_it_commits(store: Store) -> None:
    with hold_lock(store, "a.lock") as held:
        held.check()
        store.put("a.lock", content(ELSEWHERE))
        with pytest.raises(ConcurrentWriterError, match="taken over by another writer"):
            held.check()
    with hold_lock(store, "b.lock") as held:
        store.remove("b.lock")
        with pytest.raises(ConcurrentWriterError, match="taken over by another writer"):
            held.check()


@pytest.mark.usefixtures("hurried")
def test_a_waiter_says_for_whom_it_waits_and_says_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(locks, "LOCK_S", 3.0)
    monkeypatch.setattr(locks, "REPORT_S", 1.0)
    store = Store(tmp_path)
    store.put("a.lock", content(ELSEWHERE | {"host": "node\n7", "pid": 4711, "since_s": 1.7e9}))
    with hold_lock(store, "a.lock"):
        pass
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 5
    for line in lines:
        assert line.startswith(f"waiting for {tmp_path}/a.lock, held by process 4711 on 'node\\n7' since 2023-11-14 ")


def test_a_process_of_the_same_number_in_another_container_is_not_taken_for_the_holder() -> None:
    holder = locks.Holder(host=socket.gethostname(), pid=dead_process(), since_s=0.0, namespace="pid:[1]")
    assert not holder.is_dead()
    assert locks.Holder(host=holder.host, pid=holder.pid, since_s=0.0).is_dead()


def test_the_age_of_a_file_is_told_by_the_store(store: Store) -> None:
    store.put("file", b"x")
    age_s = store.age_s("file")
    assert age_s is not None
    assert -0.1 <= age_s < 5
    assert store.age_s("no such file") is None
    if store.is_local:
        os.utime(store.full("file"), (1.0, 1.0))
        assert (store.age_s("file") or 0) > 1e9
