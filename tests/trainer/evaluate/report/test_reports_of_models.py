"""Reports where several models, few classes or changed memories stand in one group."""

import re
from pathlib import Path

import numpy as np
import pytest

from memory_builder.cli import main
from memory_builder.memory import Memory
from memory_builder.storage.store import Store
from trainer.evaluate.numbers.metrics import NO_ANSWER, Answers, classification_figures
from trainer.evaluate.report.entries import Group, read_groups
from trainer.evaluate.report.pictures import Pictures
from trainer.evaluate.results import Result, predictions_table, write_result

LABELS = np.array([0, 0, 1, 1])


def write(run: Path, task: str, method: str, model: str, answered: list[int], labels=LABELS) -> None:
    """A result of four pictures; answers other than 0 and 1 are wrong."""
    first = np.array(answered)
    rank = np.where(first == labels, 0, 1)
    found = Answers(labels=labels, rank=rank, top=first[:, None])
    described = {"name": "set", "root": "/gone/set", "split": "test", "kind": "classification", "digest": "d"}
    result = Result(
        task=task,
        method=method,
        figures=classification_figures([found], (), 2),
        model={"name": model, "fingerprint": model},
        dataset=described | {"classes": ["cat", "dog"], "templates": [], "tiers": []},
        memory={} if method == "zero-shot" else {"root": "/gone/memory"},
    )
    columns = {} if method == "zero-shot" else {"reasons": [[0]] * 4}
    write_result(Store(run), result, predictions_table(list("abcd"), [found], **columns))


@pytest.fixture
def runs(tmp_path) -> list[str]:
    """The frozen model's zero-shot; a customised one's; a third run of it without; and one of a model without any."""
    write(tmp_path / "frozen", "zero-shot", "zero-shot", "frozen", [1, 1, 0, 1])
    write(tmp_path / "custom", "baselines", "zero-shot", "custom", [1, 1, 1, 1])
    write(tmp_path / "custom", "baselines", "knn", "custom", [0, 0, 1, NO_ANSWER])
    write(tmp_path / "again", "baselines", "knn", "custom", [0, 1, 1, 1])
    write(tmp_path / "other", "baselines", "knn", "other", [0, 0, 0, 0])
    return [str(tmp_path / name) for name in ("frozen", "custom", "again", "other")]


def group_of(runs: list[str]) -> Group:
    (group,) = read_groups(runs)
    return group


def page_of(runs: list[str], out: Path) -> str:
    assert main(["report", *runs, "--out", str(out / "report.html")]) == 0
    return (out / "report.html").read_text()


def test_tables_compare_with_zero_shot_of_the_first_run_given_and_say_so(runs, tmp_path):
    for given in (runs, runs[1:], runs[::-1]):
        first = next(run for run in given if run.endswith(("frozen", "custom")))
        assert group_of(given).zero_shot.run.root == first
        name = first.rpartition("/")[2]
        page = page_of(given, tmp_path)
        assert f"The difference from zero-shot is from zero-shot ({name}), for every model." in page
    (row,) = re.findall(r"<tr><th scope=\"row\">knn \(custom\)</th>.*?</tr>", page_of(runs, tmp_path))
    assert "<b>+50.0</b>" in row, "over the frozen model, not its own"
    assert "for every model" not in page_of(runs[1:3], tmp_path), "one model"


def test_the_gallery_shows_what_the_memory_changed_and_not_what_the_model_did(runs, tmp_path):
    page = page_of(runs, tmp_path)
    told = dict(re.findall(r"<summary>(.*?): (.*?)</summary>", page))
    assert told == {"knn (custom)": "2 corrected, 1 broken", "knn (again)": "1 corrected, 0 broken"}


def test_where_a_method_said_nothing_the_gallery_says_so(runs, tmp_path):
    page = page_of(runs, tmp_path)
    assert page.count("knn: <q>nothing</q> ✗ wrong") == 1


def test_few_classes_are_remarked_and_one_has_no_interval(runs, tmp_path):
    assert "Intervals over fewer than 20 classes" in page_of(runs, tmp_path)
    for method, answered in (("zero-shot", [0, 1, 0, 1]), ("knn", [0, 0, 0, 1])):
        write(tmp_path / "one", "baselines", method, "m", answered, labels=np.zeros(4, np.int64))
    page = page_of([str(tmp_path / "one")], tmp_path)
    assert "<td><b>75.0</b></td>" in page
    assert "<td><b>+25.0</b></td>" in page
    assert "nan" not in page


def test_rows_that_a_memory_made_anew_lacks_are_said_to_be_left_out(memory):
    pictures, there = Pictures(), int(Memory.open(memory).row_ids(0)[0])
    pictures.read_rows(str(memory), [there, 10**9])
    (said,) = pictures.missing
    assert said == f"Rows of the memory are not shown: row id {10**9} is not in {memory}"
