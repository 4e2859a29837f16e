"""Whoever waits for a model is told so at once: before torch is imported, once, and never on standard output."""

import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.processes import python

WATCHED = """
import sys
from memory_builder.cli import main

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "open_clip"):
            print(f"importing {name}", file=sys.stderr, flush=True)

sys.meta_path.insert(0, Finder())
sys.exit(main(sys.argv[1:]))
"""


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WATCHED, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loading")
    for name, colour in (("red", (200, 30, 30)), ("blue", (30, 30, 200))):
        for split in ("test", "train"):
            (folder / "set" / split / name).mkdir(parents=True)
            Image.new("RGB", (32, 32), colour).save(folder / "set" / split / name / "0.png")
    (folder / "classes.txt").write_text("cat\nbus\n")
    return folder


def check(done: subprocess.CompletedProcess[str], model: str) -> None:
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if re.match("loading model|importing", line)]
    assert lines[0] == f"loading model {model}"
    assert lines.count(lines[0]) == 1
    assert "importing torch" in lines
    assert "loading model" not in done.stdout


def test_every_command_that_loads_a_model_says_so_before_it_imports_torch(
    work: Path, built_memory: Path, small_shards: Path, model: str
) -> None:
    embedded = run("embed", small_shards / "00000.tar", "--memory", work / "memory", "--model", model)
    check(embedded, model)
    found = run("search", built_memory, "--text", "a cat", "--json")
    check(found, model)
    assert len(json.loads(found.stdout)["hits"]) == 10
    how = ("--classes", work / "classes.txt", "--per-query", 5, "--out", work / "subset")
    check(run("retrieve", built_memory, *how), model)
    how = ("--dataset", work / "set", "--out", work / "eval", "--json")
    measured = run("evaluate", "zero-shot", "--model", model, *how)
    check(measured, model)
    assert [json.loads(line)["task"] for line in measured.stdout.splitlines()] == ["zero-shot"]
    loop = ("--batch-size", 4, "--max-steps", 1, "--epochs", 1)
    check(run("train", "react", work / "subset", "--out", work / "run", *loop), model)  # the model that chose it
    check(run("evaluate", "zero-shot", "--run", work / "run", *how[:2]), model)


def test_who_needs_no_model_is_told_of_none(work: Path, built_memory: Path) -> None:
    np.save(work / "vectors.npy", np.ones((1, 192), np.float32))
    done = run("search", built_memory, "--vector", work / "vectors.npy")
    assert done.returncode == 0, done.stderr
    assert not re.search("loading model|importing", done.stderr)


def test_a_service_has_loaded_its_model_before_it_says_that_it_serves(built_memory: Path, model: str) -> None:
    arguments = ("-c", WATCHED, "serve", built_memory, "--port", "0")
    with python(*arguments, stderr=subprocess.PIPE) as process:
        lines = []
        for line in process.stderr:
            lines.append(line.strip())
            if line.startswith("serving"):
                break
        process.kill()
        rest = process.stderr.read()
    assert lines[0] == f"loading model {model}"
    assert "importing torch" in lines
    assert lines[-1].startswith("serving")
    assert "loading model" not in rest


def test_a_service_whose_model_may_not_be_loaded_answers_vectors(memory_copy: Path) -> None:
    path = memory_copy / "memory.json"
    described = json.loads(path.read_text())
    path.write_text(json.dumps(described | {"model": "local-dir:/nowhere/model"}))
    with python("-m", "memory_builder.cli", "serve", memory_copy, "--port", "0", stderr=subprocess.PIPE) as process:
        said = []
        for line in process.stderr:
            said.append(line)
            if served := re.search(r"^serving .* at (\S+)", line):
                break
        else:
            pytest.fail("".join(said))
        body = json.dumps({"vectors": [[1.0] * 192], "k": 1}).encode()
        asked = urllib.request.Request(f"{served[1]}/search", body, {"content-type": "application/json"})
        with urllib.request.urlopen(asked, timeout=60) as response:
            assert len(json.load(response)["queries"][0]["hits"]) == 1
        process.kill()
    assert "only vectors can be searched with" in "".join(said)
    assert "name it yourself: --model" in "".join(said)
