"""The examples are scripts, not a package: put their folders on the path as running them does."""

import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path[:0] = [str(EXAMPLES / "icons"), str(EXAMPLES)]
