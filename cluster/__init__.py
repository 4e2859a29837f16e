"""Spreads the stages over a Ray cluster; the only package that imports ray, besides trainer.run."""

import os

# Ray reads this as it is imported. Left on, a driver under `uv run` makes every worker build its own environment first.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
