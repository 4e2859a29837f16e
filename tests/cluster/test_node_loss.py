import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.ray
def test_items_on_a_lost_node_are_done_elsewhere_and_not_blamed(tmp_path):
    # A process joins one cluster only, and this one has joined the small one.
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"PYTHONPATH": str(HERE)}
    script = [sys.executable, HERE / "lose_a_node.py", tmp_path]
    done = subprocess.run(script, env=env, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {str(item): str(item * item) for item in range(15)}
    assert len(list(tmp_path.iterdir())) > 15, "the node was lost while it worked"
