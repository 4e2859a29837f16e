"""Readers beside writers, for some seconds: what benchmarks/concurrency.py does for a minute."""

from conftest import load_benchmark


def test_every_answer_beside_two_writers_is_that_of_one_state(tmp_path):
    benchmark = load_benchmark("concurrency")
    config = benchmark.Concurrency(work=tmp_path / "memory", readers=4, writers=2, seconds=6)
    outcome = benchmark.concurrency(config)
    assert (outcome.errors, outcome.torn, outcome.back) == ([], [], [])
    assert outcome.changes > 5
    assert outcome.answers > 20
    assert outcome.deleted > 0
