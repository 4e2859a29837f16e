"""Requests made up from what the service says of itself: none may end in an error of its own, or be answered otherwise.

    python benchmarks/openapi_cases.py --memory MEMORY

Starts ``memory-builder serve`` and lets schemathesis make up requests from its OpenAPI, bodies of arrays included,
valid and invalid. Left out is its check that whatever fits the schema is accepted: no schema can tell a filter in SQL,
or base64 of a picture. A short run of it is among the tests.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from memory_builder.storage.formats import npy_bytes

HERE = Path(__file__).resolve()
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,negative_data_rejection,missing_required_header,unsupported_method"
)


@dataclass(frozen=True)
class Config:
    """What is tried."""

    memory: str
    examples: int = 300
    """Of each operation and phase, at most."""
    seconds: int = 600
    """At most."""
    seed: int = 0
    phases: tuple[str, ...] = ("examples", "coverage", "fuzzing")


def main(config: Config) -> int:
    from stalled_clients import serving

    with serving(config.memory) as (process, port):
        program = Path(sys.executable).parent / "schemathesis"
        command = [program, "run", f"http://127.0.0.1:{port}/openapi.json", "--checks", CHECKS]
        command += ["--max-examples", str(config.examples), "--max-time", str(config.seconds)]
        command += ["--seed", str(config.seed), "--phases", ",".join(config.phases)]
        environment = os.environ | {"SCHEMATHESIS_HOOKS": "openapi_cases", "PYTHONPATH": str(HERE.parent)}
        done = subprocess.run(command, env=environment, cwd="/tmp", stdout=subprocess.PIPE, text=True)
        print("\n".join(line[:300] for line in done.stdout.splitlines()))
        assert process.poll() is None, "the service died"
    return done.returncode


def register() -> None:
    """Say how .npy files look; called where schemathesis imports this file."""
    import schemathesis
    from hypothesis import strategies as st

    shapes = st.tuples(st.integers(0, 5)) | st.tuples(st.integers(0, 5), st.sampled_from([1, 192]))
    kinds = st.sampled_from(["<f4", "<f8", "<i8", "<u1", ">i4", "|b1", "<c8", "<U3", "<f2"])
    arrays = st.builds(
        lambda shape, kind, value: npy_bytes(np.full(shape, value).astype(kind)), shapes, kinds, st.integers(0, 9)
    )
    broken = st.builds(
        lambda data, at, byte: data[:at] + byte + data[at + 1 :], arrays, st.integers(0, 200), st.binary(max_size=2)
    )
    schemathesis.openapi.media_type("application/x-npy", arrays | broken | st.binary(max_size=300))


if __name__ == "__main__":
    import tyro

    sys.exit(main(tyro.cli(Config)))
elif "schemathesis" in sys.modules:
    register()
