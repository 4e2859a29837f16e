"""What stands around the code is true: the site builds, links lead somewhere, versions agree."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import memory_builder
from helpers.bundled import ROOT

PAGES = sorted(page for folder in (".", "docs", "examples", "examples/icons") for page in (ROOT / folder).glob("*.md"))


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    api = (tmp_path / "site" / "api" / "index.html").read_text()
    for name in memory_builder.__all__:
        assert f'id="memory_builder.{name}"' in api, f"docs/api.md does not show {name}"
    for page in (tmp_path / "site").rglob("*.html"):
        assert not re.findall(r'<(?:script|img|link)[^>]+(?:src|href)="(?:https?:)?//', page.read_text()), page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
        assert (page.parent / target).exists(), target


def test_the_version_is_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == memory_builder.__version__
    released = re.findall(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert released[0] == memory_builder.__version__
    assert len(citation["references"]) == 2


def test_the_workflow_runs_every_python_that_is_promised() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    first, end = map(int, re.findall(r"3\.(\d+)", project["requires-python"]))
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    job = workflow["jobs"]["check"]
    assert job["strategy"]["matrix"]["python"] == [f"3.{minor}" for minor in range(first, end)]
    assert [step.get("run") for step in job["steps"]][-1] == ".ci/run"
