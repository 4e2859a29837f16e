"""Mutated records and index files: an answer or an error of ours, and nothing touched beside the memory.

benchmarks/mutated.py does thousands; here are as many as take half a minute.
"""

from helpers.bundled import load_benchmark


def test_mutated_records_and_index_files_end_well(tmp_path):
    mutated = load_benchmark("mutated")
    outcomes = mutated.mutated(mutated.Mutated(records=150, indexes=60, work=tmp_path, seed=5))
    assert [outcome for outcome in outcomes if not mutated.is_clean(outcome)] == []
    ends = {outcome.end for outcome in outcomes}
    assert ends == {"answer", "error of ours"}, "some mutations are noticed, and some do not matter"


def test_what_is_looked_for_is_found(tmp_path):
    mutated = load_benchmark("mutated")
    kind = mutated.Kind(name="any", folder=tmp_path / "memory", files=("a.json",), use=lambda _: None)
    kind.folder.mkdir()
    (kind.folder / "a.json").write_text('{"a": [1, 2]}')
    for name in ("victim", "victim-before"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "kept").write_text("kept")

    def end_of(use):
        trial = mutated.replace(kind, use=use)
        return mutated.attempt(trial, 0, "a.json", mutated.Mutated(), tmp_path, fits=False).end

    assert end_of(lambda _: None) == "answer"
    assert end_of(lambda _: (tmp_path / "victim" / "kept").read_text()) == "outside"
    assert end_of(lambda _: mutated.os.kill(mutated.os.getpid(), 11)) == "signal SIGSEGV"
    assert end_of(lambda _: {}["x"]) == "unclean KeyError"
    assert end_of(lambda _: mutated.subprocess.run(["true"])) == "outside"
    assert end_of(lambda folder: (folder / "a.json").unlink()) == "answer"
