"""A stage counts its items, ends when the storage is full, and hands over or raises failures of single items."""

import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from memory_builder.base.runner import LocalRunner
from memory_builder.base.stage import Stage
from memory_builder.errors import SourceError, StorageFullError


@dataclass(frozen=True)
class Halves:
    wants_gpu: bool = False

    def start(self) -> Callable[[int], int]:
        def halve(number: int) -> int:
            if number == 13:
                raise SourceError("13 is odd")
            if number == 99:
                raise StorageFullError("no room")
            return number // 2

        return halve


@pytest.fixture
def stage() -> Stage[int, int]:
    return Stage(name="halve", task=Halves(), runner=LocalRunner(), unit="numbers")


def test_failures_are_handed_over_and_counted(stage: Stage[int, int], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "memory_builder"):
        outcomes = dict(stage.outcomes([4, 13, 6], n_done=2, n_pairs=lambda half: half))
    assert (outcomes[4], outcomes[6]) == (2, 3)
    assert isinstance(outcomes[13], SourceError)
    assert caplog.messages[0] == "halve: 2/5 numbers"
    assert caplog.messages[-1].startswith("halve: 4/5 numbers, 1 failed, ")


def test_work_of_no_use_in_part_raises_the_first_failure(stage: Stage[int, int]) -> None:
    assert list(stage.results([4, 6])) == [(4, 2), (6, 3)]
    with pytest.raises(SourceError, match="13 is odd"):
        list(stage.results([4, 13, 6]))


def test_a_full_storage_ends_the_stage(stage: Stage[int, int]) -> None:
    seen = []
    with pytest.raises(StorageFullError, match="no room"):
        seen.extend(stage.outcomes([4, 99, 6]))
    assert seen == [] or seen == [(4, 2)]


def test_a_program_that_imports_the_library_sees_no_lines_unless_it_asks() -> None:
    code = (
        "from memory_builder.base.log import logger, warn_once\n"
        "logger.info('progress'); warn_once('attention'); warn_once('attention')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "attention\n")
