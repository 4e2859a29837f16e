import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
import ray
from ray._private.state import actors

import memory_builder
from cluster.runner import RayRunner
from helpers.cluster_tasks import CGROUP, DiesStarting, NeverStarts, Squares, Threads
from helpers.processes import python
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


@pytest.fixture
def memory_limits():
    """Groups of processes with a limit of their own, where the kernel and our rights allow it."""
    try:
        (CGROUP / "memory-builder-test").mkdir()
    except OSError:
        pytest.skip("no right to limit the memory of a process here")
    yield
    for group in CGROUP.glob("memory-builder-test*"):
        group.rmdir()


@pytest.mark.usefixtures("memory_limits")
def test_workers_that_the_kernel_kills_for_memory_are_replaced_and_nothing_is_lost(runner, tmp_path):
    do = {3: "run out of memory once", 5: "run out of memory", 7: "be refused memory"}
    results = run(runner, Squares(do=do, marks=str(tmp_path)), range(12))
    assert len(list(tmp_path.glob("3-*"))) == 2
    assert type(results[5]) is WorkerError
    assert "the worker process died 3 times on this item" in str(results[5])
    assert "out of memory" in str(results[5])
    assert type(results[7]) is MemoryError
    assert {item: result for item, result in results.items() if item not in (5, 7)} == {
        item: item * item for item in range(12) if item not in (5, 7)
    }


TERMINATED = """
import sys
from memory_builder.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("after_s", [0.0, 3.0])
def test_sigterm_ends_a_driver_and_its_workers(tmp_path, after_s):
    sample = Path(memory_builder.__file__).parent / "demo"
    embed = ["embed", sample / "sample", "--memory", tmp_path / "memory", "--model", f"local-dir:{sample / 'model'}"]
    with python("-c", TERMINATED, *embed, "--runner", "ray", stderr=subprocess.PIPE) as driver:
        assert driver.stderr is not None
        assert any(line.startswith("embed: 0/5 shards") for line in driver.stderr)
        time.sleep(after_s)
        session = {line for line in processes() if str(driver.pid) in line.split()[:2]}
        driver.send_signal(signal.SIGTERM)
        _, said = driver.communicate(timeout=60)
    assert driver.returncode == 143
    assert said.endswith("interrupted; the same command resumes\n")
    assert "SIGTERM received" not in said
    assert not list((tmp_path / "memory").glob("*.lock"))
    deadline = time.monotonic() + 20
    while left := {line.split()[0] for line in session} & {line.split()[0] for line in processes()}:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


def processes():
    """Process, parent and command of each that runs."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid,cmd"], capture_output=True, text=True, check=True)
    return listed.stdout.splitlines()[1:]


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
    with pytest.raises(WorkerError, match="6 workers died in a row"):
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
