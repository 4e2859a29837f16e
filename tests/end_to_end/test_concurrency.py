"""Readers beside writers, for some seconds: what benchmarks/concurrency.py does for a minute."""

import importlib.util
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "concurrency.py"


def load():
    spec = importlib.util.spec_from_file_location("concurrency", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    sys.modules["concurrency"] = module
    spec.loader.exec_module(module)
    return module


def test_every_answer_beside_two_writers_is_that_of_one_state(tmp_path):
    benchmark = load()
    config = benchmark.Concurrency(work=tmp_path / "memory", readers=4, writers=2, seconds=6)
    outcome = benchmark.concurrency(config)
    assert (outcome.errors, outcome.torn, outcome.back) == ([], [], [])
    assert outcome.changes > 5
    assert outcome.answers > 20
    assert outcome.deleted > 0
