#!/usr/bin/env bash
# From nothing to the tables of results.md beside it, given Python 3.11, pip and npm: pipeline.py, with the arguments it takes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
command -v uv >/dev/null || pip install -q uv
exec uv run --project "$here/../.." python "$here/pipeline.py" "$@"
