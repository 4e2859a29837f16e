"""The whole of examples/icons on the bundled sample, from the pairs to the tables, against stored bounds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PIPELINE = Path(__file__).parents[2] / "examples" / "icons" / "pipeline.py"


def run(out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PIPELINE), "--out", str(out), "--sample", *more]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, str]:
    """Run up to the index, then to the end."""
    out = tmp_path_factory.mktemp("pipeline")
    command = [str(PIPELINE.with_name("run.sh")), "--out", str(out), "--sample", "--upto", "index"]
    first = subprocess.run(command, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    rest = run(out)
    assert rest.returncode == 0, rest.stderr
    return out, rest.stderr


def test_what_is_done_is_not_done_again_and_the_figures_are_as_stored(made: tuple[Path, str]) -> None:
    out, told = made
    assert "== embed:" not in told
    assert "== baselines-common" in told
    tables = (out / "results.md").read_text()
    assert tables.startswith("### test-common, test\n\n384 classes, 384 pictures; a memory of 1,914 rows")
    methods = {line.split(" | ")[0].removeprefix("| ") for line in tables.splitlines()}
    assert methods >= {f"{name} (common)" for name in ("zero-shot", "knn", "mean-fusion", "pixel", "reco-both")}
    assert "zero-shot (react-common)" in methods
    assert "<html" in (out / "report.html").read_text()[:200]


@pytest.mark.parametrize("run", ["react", "reco", "reco-react"])
def test_what_is_trained_learns(made: tuple[Path, str], run: str) -> None:
    """384 pictures are too few to tell by their answers: bounds around those hold for a run that does nothing, too."""
    lines = (made[0] / run / "metrics.jsonl").read_text().splitlines()
    first, *_, last = [json.loads(line)["loss"] for line in lines]
    assert last < (0.85 if run == "react" else 0.95) * first


def test_a_step_asked_for_otherwise_is_done_anew_with_all_after_it(made: tuple[Path, str]) -> None:
    out, _ = made
    record = out / "steps" / "report.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"command": ["another"]}))
    again = run(out)
    assert again.returncode == 0, again.stderr
    assert [line.split(":")[0] for line in again.stderr.splitlines() if line.startswith("==")] == [
        "== report",
        "== results",
    ]


def test_a_figure_that_has_moved_is_an_error(made: tuple[Path, str], tmp_path: Path) -> None:
    out, _ = made
    bounds = tmp_path / "bounds.json"
    bounds.write_text(json.dumps({"test-common": {"knn (common)": [0.9, 1.0], "no-such": [0, 1]}}))
    runs = [str(out / "runs" / name) for name in ("common", "react-common")]
    command = [sys.executable, str(PIPELINE.with_name("results.py")), *runs]
    done = subprocess.run([*command, "--out", str(tmp_path / "r.md"), "--bounds", str(bounds)], capture_output=True)
    assert done.returncode == 1
    assert b"knn (common): top-1 is 0." in done.stderr
    assert b"no-such: top-1 is missing" in done.stderr


def test_no_such_step(tmp_path: Path) -> None:
    done = run(tmp_path, "--upto", "nothing")
    assert done.returncode == 2
    assert "deal, embed, index" in done.stderr


def study(name: str, made_by_pipeline: Path, out: Path, *flags: object) -> str:
    """Run a study over what the pipeline made; return its tables."""
    places = {name: made_by_pipeline / folder for name, folder in (("--baselines", "runs"), ("--memory", "memory"))}
    places |= {"--benchmark": made_by_pipeline / "benchmark", "--out": out}
    given = [str(word) for pair in places.items() for word in pair]
    command = [sys.executable, str(PIPELINE.with_name(f"{name}_study.py")), *given, "--seeds", "1", *map(str, flags)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return (out / "tables.md").read_text()


def test_a_study_of_reco_compares_variants_and_smaller_memories(made: tuple[Path, str], tmp_path: Path) -> None:
    out, _ = made
    flags = ("--unasked", out / "memory", "--train", out / "memory", "--steps", 4, "--batch-size", 256)
    tables = study("reco", out, tmp_path, *flags, "--only", "published", "10 % of the memory", "30 % of the memory")
    heads = [line.removeprefix("### ") for line in tables.splitlines() if line.startswith("###")]
    assert heads == ["dev, all tiers", "test, all tiers", "dev-common", "test-common"]
    labels = [line.split(" | ")[0].removeprefix("| ") for line in tables.splitlines()]
    assert {"mean-fusion", "published: reco-both", "10 % of the memory: reco-image"} <= set(labels)
    assert "| over zero-shot | over mean-fusion | over knn |" in tables
    snapshots = (tmp_path / "memory-10" / "snapshots").glob("*.json")
    assert max(json.loads(path.read_text())["number"] for path in snapshots) == 2
    assert len(list((out / "memory" / "snapshots").glob("*.json"))) == 1  # the memory itself is as it was
    chart = (tmp_path / "by-memory.svg").read_text()
    assert chart.count('stroke-width="2"') == 1  # the lines of series are 2 px wide, and the sample has one tier
    assert [f">{place}<" in chart for place in ("frozen", "10", "30", "100", "common")] == [True] * 5
    assert not (tmp_path / "by-k.svg").exists()
    tables = study("reco", out, tmp_path, *flags, "--only", "published", "--prefix", "react-")
    (result,) = [path for path in (out / "runs" / "react-common" / "eval").glob("*.json") if "zero-shot" in path.name]
    top1 = 100 * json.loads(result.read_text())["figures"]["metrics"]["top1"]
    assert f"| zero-shot | {top1:.1f} (" in tables.partition("### test-common")[2]


def test_a_study_of_react_measures_mixtures_too(made: tuple[Path, str], tmp_path: Path) -> None:
    out, _ = made
    flags = ("--only", "a third of the pairs", "--steps", 2, "--batch-size", 64, "--per-query", 3)
    tables = study("react", out, tmp_path, *flags)
    labels = [line.split(" | ")[0].removeprefix("| ") for line in tables.splitlines()]
    assert {"a third of the pairs, 50%", "a third of the pairs, 100%", "wise-head"} <= set(labels)
