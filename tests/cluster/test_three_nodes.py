"""What goes wrong on a cluster of three nodes: all of it on one, because a cluster takes long to start."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from helpers.bundled import HELPERS
from memory_builder.base.runner import LocalRunner
from memory_builder.catalog.manifest import Manifest
from memory_builder.maintenance.info import read_info
from memory_builder.maintenance.verify import verify
from memory_builder.storage.store import Store

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    return Path(tmp_path_factory.mktemp("three-nodes"))


@pytest.fixture(scope="module")
def came(work, sample, model) -> dict[str, Any]:
    """What came of each fault."""
    shards = work / "shards"
    shards.mkdir()
    for path in sample[:3]:
        shutil.copy(path, shards)
    shutil.copy(sample[4], shards / "00002-poison.tar.gz")
    # A process joins one cluster only, and this one may have joined the small one.
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    env["RAY_worker_niceness"] = "0"  # see conftest.py
    script = [sys.executable, HELPERS / "three_nodes.py", work, shards, model]
    done = subprocess.run(script, env=env, capture_output=True, text=True, timeout=540, check=False)
    assert done.returncode == 0, done.stderr
    came: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return came


def test_items_on_a_lost_node_are_done_elsewhere_and_not_blamed(came, work):
    assert came["squares"] == {str(item): str(item * item) for item in range(15)}
    assert len(list((work / "squares").iterdir())) > 15, "the node was lost while it worked"


def test_a_shard_that_kills_its_process_is_isolated_and_the_rest_is_done(came, work):
    ran = came["fire"]
    assert ran["code"] == 1, ran
    assert "3/4 shards (3 embedded now)" in ran["out"]
    assert "1 shards failed" in ran["err"]
    (row,) = [line for line in ran["err"].splitlines() if "poison" in line]
    assert "WorkerError: the worker process died 3 times on this item" in row
    info = read_info(Store(work / "fire" / "memory"))
    assert info.shards == {"done": 3, "partial": 0, "failed": 1, "pending": 0}
    begun = Counter(mark.name.rsplit("-", 1)[0] for mark in (work / "fire" / "marks").iterdir())
    assert begun["00002-poison.tar.gz"] >= 3  # more: it also went with the node, or was out of reach on a busy machine
    assert max(begun.values()) >= 2
    assert begun.total() > 3 + 3, "a worker was killed and a node lost while they worked"


def test_what_was_embedded_under_fire_is_whole_and_the_same_as_ever(came, work, sample, model):
    from memory_builder.cli import main

    assert came
    store = Store(work / "fire" / "memory")
    assert verify(store, LocalRunner()) == []
    plain = work / "plain"
    assert main(["embed", sample[0], "--memory", str(plain), "--model", model]) == 0
    (expected,) = Manifest.read(Store(plain)).commits.values()
    (found,) = [c for c in Manifest.read(store).commits.values() if Path(c.uri).name == Path(sample[0]).name]
    assert list(found.checksums.values()) == list(expected.checksums.values())


def test_a_broken_model_fails_at_once_and_blames_no_shard(came, work):
    ran = came["broken"]
    assert ran["code"] == 2, ran
    assert f"local-dir:{work}/nowhere" in ran["err"]
    assert "failed" not in ran["err"]
    assert ran["seconds"] < 180, "a load that is tried again and again takes longer"
    assert not (work / "broken").exists()
