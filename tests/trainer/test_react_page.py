"""Every command of docs/react.md, run in order on a tiny model and a small subset."""

import contextlib
import io
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from helpers.evaluation_sets import classification_set
from helpers.tiny_runs import write_tiny_model
from memory_builder.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "react.md"
COMMANDS = [
    line for block in re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.S) for line in block.splitlines() if line
]


def figures(run: Path) -> dict[str, float]:
    """What evaluate found in a run."""
    (result,) = (run / "eval").glob("*.json")
    return json.loads(result.read_text())["figures"]["metrics"]


@pytest.mark.usefixtures("one_thread")
def test_the_commands_of_the_page_run_in_order(subset, tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    model = write_tiny_model(tmp_path / "model", layers=6)
    shutil.copytree(subset, tmp_path / "subset")
    classification_set(tmp_path / "shapes", splits={"test": 1})
    monkeypatch.chdir(tmp_path)
    for line in COMMANDS:
        arguments = [model if word == "MODEL" else word for word in shlex.split(line)][1:]
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            assert main(arguments) == 0, f"{line}: {err.getvalue()}"
    of_run, of_exported = (figures(tmp_path / name) for name in ("run", "plain"))
    assert of_run == of_exported
    assert len(list((tmp_path / "cache" / "images").iterdir())) == 1  # shared by two runs
