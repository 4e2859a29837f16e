"""Readers beside writers until enough has happened: what benchmarks/concurrency.py does for a minute."""

from helpers.bundled import load_benchmark


def enough(so_far) -> bool:
    return so_far.changes >= 20 and so_far.answers >= 300


def test_every_answer_beside_two_writers_is_that_of_one_state(tmp_path):
    benchmark = load_benchmark("concurrency")
    # The time only ends a run that has come to a halt.
    config = benchmark.Concurrency(work=tmp_path / "memory", readers=4, writers=2, seconds=300)
    outcome = benchmark.concurrency(config, lambda so_far: bool(so_far.errors) or enough(so_far))
    assert (outcome.errors, outcome.torn, outcome.back) == ([], [], [])
    assert enough(outcome)
    assert outcome.deleted > 0
