"""examples/ray_cluster.py, on the tests' cluster."""

import subprocess
import sys
from pathlib import Path

import pytest

from helpers.bundled import ROOT, SAMPLE, small_shard


@pytest.mark.slow
@pytest.mark.ray
def test_the_example_embeds_indexes_and_searches_on_the_cluster(ray_cluster, tmp_path: Path) -> None:
    small_shard(SAMPLE / "00000.tar.gz", tmp_path / "00000.tar", n_pairs=60)
    command = [sys.executable, str(ROOT / "examples" / "ray_cluster.py"), "--address", ray_cluster.address]
    command += ["--sources", str(tmp_path / "00000.tar"), "--memory", str(tmp_path / "memory")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 6
