"""A study's marks of what is done: the same is not done again, and something else is not taken for it."""

from pathlib import Path

import pytest
from iconify import IconsError
from study import do_once


def test_the_same_is_done_once_and_another_thing_is_refused(tmp_path: Path) -> None:
    done, times = tmp_path / "run" / "trained", []
    for _ in range(2):
        do_once(done, "train --steps 4", lambda: times.append(1))
    assert times == [1]
    with pytest.raises(IconsError, match=r"(?s)run holds.*--steps 4.*and not.*--steps 8.*Remove it"):
        do_once(done, "train --steps 8", lambda: times.append(2))
    assert times == [1]


def test_what_failed_is_not_done(tmp_path: Path) -> None:
    def fail() -> None:
        raise IconsError("no")

    with pytest.raises(IconsError, match="no"):
        do_once(tmp_path / "trained", "train", fail)
    assert not (tmp_path / "trained").exists()
