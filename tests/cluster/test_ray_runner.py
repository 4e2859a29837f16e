import os
import signal
import threading
import time
from pathlib import Path

import pytest
import ray
from cluster_tasks import DiesStarting, NeverStarts, Squares, Threads
from ray._private.state import actors

from cluster.runner import RayRunner
from memory_builder.errors import EncoderError, WorkerError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture
def runner():
    """Two workers; none may be left when the test is over."""
    yield RayRunner(cpus_per_worker=1)
    deadline = time.monotonic() + 20
    while living := [actor for actor in actors().values() if actor["State"] != "DEAD"]:
        assert time.monotonic() < deadline, living
        time.sleep(0.1)


def run(runner, task, items):
    results = list(runner.run(task, items))
    assert sorted(item for item, _ in results) == sorted(items)
    return dict(results)


def test_every_item_comes_once_and_only_the_guilty_fail(runner):
    do = {3: "raise", 7: "die", 11: "raise what cannot travel"}
    results = run(runner, Squares(do=do), range(30))
    assert type(results[3]) is ValueError
    assert str(results[3]) == "item 3"
    assert type(results[11]) is RuntimeError
    assert str(results[11]) == "TwoArgumentsError: 11: because"
    assert type(results[7]) is WorkerError
    assert "died 3 times on this item" in str(results[7])
    assert {item: result for item, result in results.items() if item not in do} == {
        item: item * item for item in range(30) if item not in do
    }


def test_a_single_worker_blames_the_poison_and_not_its_neighbours():
    results = run(RayRunner(cpus_per_worker=2), Squares(do={1: "die"}), range(3))
    assert [type(results[item]) for item in range(3)] == [int, WorkerError, int]


def test_no_items_need_no_cluster(monkeypatch):
    monkeypatch.setattr("cluster.runner.connect", lambda _: pytest.fail("connected"))
    assert list(RayRunner().run(Squares(do={}), [])) == []


def test_start_that_raises_fails_the_run_and_blames_no_item(runner):
    with pytest.raises(EncoderError, match="cannot load model 'nowhere'") as caught:
        next(runner.run(NeverStarts(), range(5)))
    assert type(caught.value) is EncoderError
    assert str(caught.value) == "cannot load model 'nowhere'"


def test_workers_that_only_die_end_the_run(runner):
    started = time.monotonic()
    with pytest.raises(WorkerError, match="6 workers died one after another"):
        next(runner.run(DiesStarting(), range(5)))
    assert time.monotonic() - started < 60


def test_a_worker_killed_from_outside_is_replaced(tmp_path):
    def kill_it():
        while not (marks := sorted(tmp_path.iterdir())) or not (pid := marks[0].read_text()):
            time.sleep(0.05)
        os.kill(int(pid), signal.SIGKILL)

    killer = threading.Thread(target=kill_it)
    killer.start()
    results = run(RayRunner(cpus_per_worker=2), Squares(do={}, seconds=0.3, marks=str(tmp_path)), range(8))
    killer.join()
    assert results == {item: item * item for item in range(8)}
    pids = {mark.read_text() for mark in Path(tmp_path).iterdir()}
    assert len(pids) == 2  # the only worker there was, and the one hired in its place


def test_leaving_early_ends_the_workers(runner):
    for _, result in runner.run(Squares(do={}, seconds=0.05), range(1000)):
        assert isinstance(result, int)
        break


@pytest.mark.parametrize("cpus", [1, 2])
def test_workers_use_as_many_threads_as_they_reserve(cpus):
    ((_, threads),) = RayRunner(cpus_per_worker=cpus).run(Threads(), [0])
    assert threads == (cpus, cpus)


def test_the_cluster_we_joined_stays():
    assert ray.is_initialized()
