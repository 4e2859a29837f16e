"""Run stages, search and the service on a Ray cluster; only this package and trainer.loop.launch import ray."""

import os

# Ray reads this at import. Left on, a driver under `uv run` makes every worker build its own environment first.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
