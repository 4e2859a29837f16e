"""Requests made up from the OpenAPI of the service: what benchmarks/openapi_cases.py does for minutes."""

import re
from pathlib import Path

import pytest

from helpers.bundled import load_benchmark


def test_what_the_service_says_of_itself_holds_for_hundreds_of_requests(
    built_memory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load_benchmark("stalled_clients")  # which the other imports
    cases = load_benchmark("openapi_cases")
    config = cases.Config(memory=str(built_memory), examples=2, seconds=20, phases=("coverage", "fuzzing"))
    code, said = cases.main(config), capsys.readouterr().out
    assert code == 0, said
    (generated,) = re.findall(r"(\d+) generated, \1 passed", said)
    assert int(generated) >= 200
