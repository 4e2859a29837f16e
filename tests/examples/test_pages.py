"""Each one-page example runs on the bundled sample, and the notebook's cells run in their order.

That for Ray runs in tests/cluster, which has the cluster.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.bundled import ROOT, SAMPLE, small_shard

EXAMPLES = ROOT / "examples"
PAGES = sorted(page for page in EXAMPLES.glob("*.py") if page.name != "oven.py")


def run(folder: Path, *command: str) -> str:
    """What a program prints in this folder."""
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Some of the bundled sample, which has umbrellas."""
    shards = tmp_path_factory.mktemp("shards")
    for i, packed in enumerate(sorted(SAMPLE.glob("*.tar.gz"))[:2]):
        small_shard(packed, shards / f"{i:05d}.tar", n_pairs=150)
    return str(shards)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_is_short_and_uses_public_names_alone(page: Path) -> None:
    text = page.read_text()
    assert len(text.splitlines()) <= 60
    assert "import memory_builder as mb" in text
    assert "from memory_builder" not in text
    assert not any(f"{verb} {package}" in text for verb in ("import", "from") for package in ("trainer", "cluster"))
    assert f"examples/{page.name}" in text.split('"""')[1], "how to run it"


def test_quickstart(tmp_path: Path, sources: str) -> None:
    printed = run(tmp_path, str(EXAMPLES / "quickstart.py"), "--sources", sources)
    assert printed.startswith("300 rows; nearest images to the text 'umbrella'")
    assert printed.count("\n") == 2 + 2 * 6


def test_own_photos_are_embedded_once_and_appended_to(tmp_path: Path, sources: str) -> None:
    command = (str(EXAMPLES / "own_photos.py"), "--photos", sources)
    first = run(tmp_path, *command)
    assert len(first.splitlines()) == 5
    assert ".tar" in first
    assert run(tmp_path, *command) == first


@pytest.mark.slow
def test_laion_import(tmp_path: Path) -> None:
    assert "umbrella" in run(tmp_path, str(EXAMPLES / "laion_import.py"))


@pytest.mark.slow
def test_react_on_my_classes(tmp_path: Path) -> None:
    printed = run(tmp_path, str(EXAMPLES / "react_on_my_classes.py"), "--max-steps", "2")
    assert [line.split(maxsplit=1)[1] for line in printed.splitlines()] == ["cat", "umbrella", "bicycle"]


@pytest.mark.slow
def test_reco_inference(tmp_path: Path) -> None:
    printed = run(tmp_path, str(EXAMPLES / "reco_inference.py"), "--max-steps", "2")
    assert [line.split()[0] for line in printed.splitlines()] == ["cat", "umbrella", "bicycle"]


@pytest.mark.slow
def test_the_notebook_holds_no_results_and_runs(tmp_path: Path) -> None:
    cells = json.loads((EXAMPLES / "quickstart.ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert "True" in run(tmp_path, "-c", "\n".join("".join(cell["source"]) for cell in code) + "\nprint(len(hits) > 0)")
