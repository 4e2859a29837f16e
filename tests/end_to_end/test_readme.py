"""Every command and every line of Python in the README, run."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from helpers.bundled import SAMPLE, small_shard

README = (Path(__file__).parents[2] / "README.md").read_text()
NOT_HERE = ("memory-builder submit",)  # tests/cluster/test_submit.py has the cluster it needs


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def shell_lines() -> list[str]:
    return [line for block in blocks("sh") for line in block.splitlines() if line.strip()]


def test_the_two_commands_stand_there():
    assert shell_lines()[:2] == [
        "pip install -q uv && uv run memory-builder demo",
        "pip install -q uv && uv run pytest",
    ]


def test_the_demo_command(tmp_path):
    root = Path(__file__).parents[2]
    line = f"{shell_lines()[0]} --out {shlex.quote(str(tmp_path / 'demo'))}"
    done = subprocess.run(line, shell=True, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "demo" / "report.html").exists()


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a hundred tiny shards where the README's commands expect them."""
    home = tmp_path_factory.mktemp("readme")
    (home / "shards").mkdir()
    for i in range(100):
        small_shard(SAMPLE / "00000.tar.gz", home / "shards" / f"{i:05d}.tar", n_pairs=1, skip=i)
    return home


def test_the_commands_of_one_machine_in_their_order(home, command, model, monkeypatch):
    monkeypatch.chdir(home)
    ours = [line for line in shell_lines() if line.startswith("memory-builder") and not line.startswith(NOT_HERE)]
    verbs = "embed index search search append delete compact info verify"
    assert [shlex.split(line)[1] for line in ours] == verbs.split()
    for line in ours:
        # the model it names would have to be downloaded
        arguments = shlex.split(line.replace("--model ViT-B-32 --pretrained laion2b_s34b_b79k", f"--model {model}"))
        ran = command(*arguments[1:])
        assert ran.code == 0, (line, ran.err)


def test_the_python_in_its_order(home, command, model, monkeypatch):
    monkeypatch.chdir(home)
    build, customise = blocks("python")
    names: dict[str, object] = {}
    exec(build.replace('model="ViT-B-32", pretrained="laion2b_s34b_b79k"', f"model={model!r}"), names)
    assert {"caption", "url", "similarity"} <= set(names["table"].columns)
    assert names["hits"].ids.shape == (1, 10)
    short = ("--batch-size", 8, "--max-steps", 2)
    for arguments in (
        ("train", "react", "subset", "--out", "run"),
        ("train", "reco", "memory", "--train", "memory", "--out", "fusion", "-k", 3),
    ):
        ran = command(*arguments, *short)
        assert ran.code == 0, ran.err
    exec(customise, names)
    assert names["refined"].shape == (1, names["memory"].description.d)


def test_it_is_short_and_its_links_lead_somewhere():
    assert len(README.splitlines()) <= 140
    for target in re.findall(r"\]\(([^)#:]+)", README):
        assert (Path(__file__).parents[2] / target).exists(), target
