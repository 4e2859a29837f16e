"""The same command twice at the same moment, by mistake: two processes, one memory."""

import json
import re
from contextlib import ExitStack
from pathlib import Path
from subprocess import PIPE

import pytest

from helpers.processes import python
from memory_builder.storage.store import Store

SAME = ("img_emb", "text_emb", "metadata", "rows", "rejects")


@pytest.fixture(params=["disk", "s3"])
def memory(request, tmp_path) -> str:
    """Where both write; the environment leads to the S3 server."""
    return f"{request.getfixturevalue('s3').url}/memory" if request.param == "s3" else str(tmp_path / "memory")


def test_two_drivers_end_in_the_result_of_one(command, memory, small_shards, built_memory, model):
    arguments = ["embed", f"{small_shards}/0000[0-3].tar", "--memory", memory, "--model", model]
    with ExitStack() as both:
        drivers = [
            both.enter_context(python("-m", "memory_builder.cli", *arguments, stdout=PIPE, stderr=PIPE))
            for _ in range(2)
        ]
        said = [driver.communicate(timeout=120) for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], said
    n_embedded = [int(re.search(r"4/4 shards \((\d+) embedded now\), 200 rows", out)[1]) for out, _ in said]
    assert sum(n_embedded) >= 4
    assert json.loads(command("verify", memory, "--json").out) == {"ok": True, "problems": []}
    info = json.loads(command("info", memory, "--json").out)
    assert (info["rows"], info["shards"]) == (200, {"done": 4, "partial": 0, "failed": 0, "pending": 0})
    store = Store(memory)
    for folder in SAME:
        names = sorted(file.name for file in (Path(built_memory) / folder).iterdir())[:4]
        assert store.list(folder) == names
        for name in names:
            assert store.read(f"{folder}/{name}") == (Path(built_memory) / folder / name).read_bytes()
    assert not store.exists("plan.lock")
