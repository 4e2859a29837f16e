"""A record stands beside its own answers, whenever writing breaks off."""

import json

import pyarrow as pa
import pytest

from memory_builder.storage.store import Store
from trainer.evaluate.numbers.metrics import Figures
from trainer.evaluate.results import Result, read_predictions, read_results, write_result


def result(top1: float) -> Result:
    return Result(
        task="zero-shot",
        method="zero-shot",
        figures=Figures(n=2, n_classes=2, metrics={"top1": top1}, ci95={"top1": (0, 1)}),
        model={"name": "m", "fingerprint": "f"},
        dataset={"name": "set.v2", "root": "/set.v2", "split": "test"},
    )


def told(run: Store) -> list[tuple[float, list[int]]]:
    """Each record's figure and the ranks beside it."""
    return [
        (found["figures"]["metrics"]["top1"], read_predictions(run, found["file"])["rank_0"].to_pylist())
        for found in read_results(run)
    ]


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("at", [".parquet", ".json", "remove"])
def test_killed_anywhere_the_record_keeps_its_own_answers(tmp_path, monkeypatch, older, at):
    run = Store(tmp_path)
    write_result(run, result(1.0), pa.table({"rank_0": [0, 0]}))
    (answers,) = (tmp_path / "eval").glob("*.parquet")
    if older:  # as they were written before
        (record,) = (tmp_path / "eval").glob("*.json")
        record.write_text(json.dumps({k: v for k, v in json.loads(record.read_text()).items() if k != "predictions"}))
        answers.rename(record.with_suffix(".predictions.parquet"))
    assert told(run) == [(1.0, [0, 0])]
    put = Store.put

    def killed(self, path, *data):
        if at == "remove" or path.endswith(at):
            raise KeyboardInterrupt
        put(self, path, *data)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "remove" if at == "remove" else "put", killed)
        with pytest.raises(KeyboardInterrupt):
            write_result(run, result(0.5), pa.table({"rank_0": [0, 1]}))
    assert told(run) == [(0.5, [0, 1])] if at == "remove" else [(1.0, [0, 0])]
    write_result(run, result(0.5), pa.table({"rank_0": [0, 1]}))
    assert told(run) == [(0.5, [0, 1])]
    assert at == "remove" or len(list((tmp_path / "eval").iterdir())) == 2, "the old answers are gone"


def test_a_result_without_answers_has_none(tmp_path):
    write_result(Store(tmp_path), result(1.0), pa.table({"rank_0": [0, 0]}))
    write_result(Store(tmp_path), result(1.0))
    (found,) = read_results(Store(tmp_path))
    assert read_predictions(Store(tmp_path), found["file"]) is None
    assert [path.suffix for path in (tmp_path / "eval").iterdir()] == [".json"]
