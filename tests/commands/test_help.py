"""Help shows examples that parse, and values by plain words."""

import shlex

import pytest

from memory_builder.cli import _parsed
from memory_builder.commands.help import EXAMPLES, SUMMARIES


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_of_a_command_parses(name: str) -> None:
    words = shlex.split(EXAMPLES[name])
    words = words[: words.index("--")] if "--" in words else words
    _parsed(name, words[1:])


def test_every_command_has_an_example() -> None:
    assert EXAMPLES.keys() == SUMMARIES.keys()


@pytest.mark.parametrize("arguments", [["embed"], ["train", "react"], ["train", "reco"], ["evaluate", "reco"]])
def test_help_shows_no_python_types(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _parsed(arguments[0], [*arguments[1:], "--help"])
    shown = capsys.readouterr().out
    assert not [word for word in ("{None}|", "STR", "config options") if word in shown]
