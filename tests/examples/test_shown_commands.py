"""The commands that the pages show for icons and benchmarks: all can be asked for, and the quick ones are run."""

import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import benchmark
import pytest
import tyro

from memory_builder import cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    page for folder in (".", "docs", "examples/icons", "benchmarks") for page in (ROOT / folder).glob("*.md")
)


def shown(path: Path) -> list[str]:
    """The lines of a page's blocks of commands, continued lines joined."""
    text = path.read_text().replace("\\\n", " ")
    return [line for block in re.findall(r"```(?:sh|bash)\n(.*?)```", text, re.S) for line in block.splitlines()]


LINES = sorted({line for page in PAGES for line in shown(page)})
SCRIPTS = [line for line in LINES if re.search(r"(examples|benchmarks)/\S+\.(py|sh)", line)]
OURS = [line for line in LINES if re.match(r"(pip install -q uv && )?(uv run )?memory-builder ", line)]


class Told(BaseException):
    """Holds what a script was asked for, instead of doing it."""


def short(line: str) -> str:
    """Return a line without what all have."""
    return re.sub(r"\s+#.*|pip install -q uv && |uv run (--with \S+ )?|python ", "", line)


@pytest.fixture
def parsed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every command end once it knows what it was asked for."""
    parse = tyro.cli

    def tell(*given: object, **more: object) -> None:
        raise Told(parse(*given, **more))  # type: ignore[call-overload]

    monkeypatch.setattr(tyro, "cli", tell)


@pytest.mark.usefixtures("parsed_alone")
@pytest.mark.parametrize("line", SCRIPTS, ids=short)
def test_a_script_takes_the_flags_that_a_page_shows(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(line, comments=True)
    at = next(i for i, word in enumerate(words) if word.endswith((".py", ".sh")))
    script = ROOT / words[at].replace("run.sh", "pipeline.py")
    monkeypatch.setattr(sys, "argv", [str(script), *words[at + 1 :]])
    monkeypatch.syspath_prepend(script.parent)
    with pytest.raises(Told):
        runpy.run_path(str(script), run_name="__main__")


@pytest.mark.usefixtures("parsed_alone")
@pytest.mark.parametrize("line", OURS, ids=short)
def test_memory_builder_takes_the_flags_that_a_page_shows(line: str) -> None:
    words = shlex.split(line, comments=True)
    with pytest.raises(Told):
        cli.main(words[words.index("memory-builder") + 1 :])


@pytest.fixture(scope="module")
def icons(built: benchmark.Benchmark, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as ~/icons of the pages, up to the memory."""
    icons = tmp_path_factory.mktemp("home")
    shutil.copytree(built.out, icons / "benchmark")
    shutil.copytree(built.splits, icons / "splits")
    model = f"local-dir:{ROOT}/memory_builder/demo/model"
    run(f"memory-builder embed ~/icons/benchmark/memory --memory ~/icons/memory --model {model}", icons)
    run("memory-builder index ~/icons/memory", icons)
    return icons


def run(line: str, icons: Path) -> str:
    """Run a command with another folder for ~/icons; return what it said."""
    words = [word.replace("~/icons", str(icons)) for word in shlex.split(line) if word not in ("uv", "run")]
    if words[0] == "memory-builder":
        words[:1] = ["python", "-m", "memory_builder.cli"]
    done = subprocess.run([sys.executable, *words[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def shown_for(script: str) -> str:
    """The command of examples/icons/README.md that runs this script."""
    (line,) = [line for line in shown(ROOT / "examples" / "icons" / "README.md") if f"/{script}.py" in line]
    return line


def test_captioned_pictures_of_both_sides(icons: Path) -> None:
    assert run(shown_for("captioned"), icons).count("captioned pictures") == 2
    assert (icons / "benchmark" / "dev-captioned" / "dataset_type.txt").read_text() == "retrieval\n"


def test_precision_of_every_mode_and_a_row_that_is_not_there_is_wrong(icons: Path) -> None:
    run(shown_for("precision"), icons)
    found = json.loads((icons / "precision" / "precision.json").read_text())
    for mode in ("t2i", "t2t", "i2i", "i2t"):
        figures = found["test"][mode]["all"]
        # All 12 rows are found for each of the three things; a third of them shows it, the other 38 ranks are empty.
        assert figures["p@50"] == pytest.approx(12 / 50 / 3, abs=0.01)
    assert (icons / "precision" / "test.svg").read_text().startswith("<svg")


def test_leaks_are_planted_and_found(icons: Path) -> None:
    run(shown_for("leaks"), icons)
    found = json.loads((icons / "leaks" / "leaks.json").read_text())
    assert found["test"]["identical"]["union"] == 1
    assert found["test"]["flip"]["pictures"] == 12


def test_the_cost_model_says_what_the_page_says(tmp_path: Path) -> None:
    """Given the page's table of what was measured, rounded as it stands there."""
    page = (ROOT / "docs" / "scale.md").read_text()
    kept: dict[str, dict[str, object]] = {}
    for line in re.findall(r"^\| [\d,]+ \| [a-z]+ \|.*", page, re.M):
        rows, stage, *cells = [cell.strip().replace(",", "") for cell in line.strip("|").split("|")]
        seconds, core, peak, mapped, bound, disk = map(float, cells)
        kept.setdefault(rows, {})["bound_bytes"] = bound * 1e9
        peaks = {"peak_bytes": peak * 1e9, "peak_with_mapped_bytes": mapped * 1e9, "disk_bytes": disk * 1e9}
        kept[rows][stage] = {"seconds": seconds, "cpu_s": core} | peaks
    assert list(kept) == ["100000", "1000000", "10000000"]
    (tmp_path / "stages.json").write_text(json.dumps(kept))
    told = run(f"python benchmarks/cost_model.py {tmp_path / 'stages.json'}", tmp_path)
    for found in (r"train of 10,000,000 rows: ([\d,]+) core s", r"fill of 10,000,000 rows: ([\d,]+) core s"):
        ours, theirs = (float(re.findall(found, text)[0].replace(",", "")) for text in (told, page))
        assert ours == pytest.approx(theirs, rel=0.02)
    assert told.splitlines()[-1].startswith("| 1,000,000,000 | 262,144 | 1,000 | 72 | 512 |")
