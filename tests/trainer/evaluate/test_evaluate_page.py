"""Every command of docs/evaluate.md, in order, on sets as it describes them."""

import re
import shlex
from pathlib import Path

import pytest

from memory_builder.cli import main

PAGE = Path(__file__).parents[3] / "docs" / "evaluate.md"
COMMANDS = [
    line for block in re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.S) for line in block.splitlines() if line
]


def test_every_command_does_what_the_page_says(
    shapes, dev_shapes, captioned, memory, model_dir, tmp_path, monkeypatch, capsys
):
    for path in (shapes, dev_shapes, captioned, memory):
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    for line in COMMANDS:
        words = [f"local-dir:{model_dir}" if word == "MODEL" else word for word in shlex.split(line)]
        assert words[0] == "memory-builder"
        assert main(words[1:]) == 0, (line, capsys.readouterr().err)
        assert capsys.readouterr().out
    assert Path("report.html").stat().st_size > 50_000
    named = set(re.findall(r"^\| `([a-z-]+)` \|", PAGE.read_text(), re.M))
    written = {path.name for path in Path("run/eval").glob("*.json")}
    for name in named:
        assert any(name in file for file in written), name


@pytest.mark.parametrize("task", ["zero-shot", "retrieval", "linear-probe", "few-shot", "baselines"])
def test_the_page_shows_every_task(task):
    assert any(line.startswith(f"memory-builder evaluate {task} ") for line in COMMANDS)
