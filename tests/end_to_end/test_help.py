"""The command explains itself: groups, examples, readable flags, the command that was meant, the version."""

import os
import pty
import re
import shlex
import subprocess
import sys

import pytest

import memory_builder
from helpers.bundled import MODEL, SAMPLE, small_shard
from memory_builder.cli import _parsed, command_class
from memory_builder.commands.help import EXAMPLES, GROUPS, SUMMARIES


def test_every_command_is_in_one_group_with_a_summary_and_an_example(command) -> None:
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(SUMMARIES) == sorted(EXAMPLES)
    shown = command("--help").out
    for name, summary in SUMMARIES.items():
        assert f"{name:<10}{summary}" in shown


@pytest.mark.parametrize("name", SUMMARIES)
def test_the_help_of_a_command_has_an_example_and_readable_flags(name: str, command) -> None:
    done = command(name, "--help")
    assert done.code == 0
    text = re.sub(r"\s+", " ", done.out)
    assert f"Example: memory-builder {EXAMPLES[name]}" in text
    for unreadable in ("{None}", "(default: None)", "(default: )", "STR", "[OPTIONS] [", "INT "):
        assert unreadable not in done.out, unreadable


@pytest.mark.parametrize("name", ["train react", "train reco", "train export", "evaluate zero-shot", "evaluate reco"])
def test_the_help_of_a_subcommand_is_readable(name: str, command) -> None:
    shown = command(*name.split(), "--help").out
    for unreadable in ("{None}", "(default: None)", "(default: )", "STR", "config options"):
        assert unreadable not in shown, unreadable


@pytest.mark.parametrize("name", SUMMARIES)
def test_the_examples_are_commands_that_parse(name: str) -> None:
    first, *flags = shlex.split(EXAMPLES[name].partition(" -- ")[0])
    assert first == name
    assert isinstance(_parsed(name, flags), command_class(name))


def test_a_misspelled_command_names_the_one_that_was_meant(command) -> None:
    done = command("serch", "memory")
    assert (done.code, done.err) == (
        2,
        "error: no command serch: did you mean search? memory-builder --help lists the commands\n",
    )
    assert command("zzz").err == "error: no command zzz: memory-builder --help lists the commands\n"
    assert command().code == 2


def test_the_version_has_one_source(command) -> None:
    from importlib.metadata import version

    assert command("--version").out == f"memory-builder {memory_builder.__version__}\n"
    assert version("memory-builder") == memory_builder.__version__


def test_on_a_terminal_progress_is_a_bar_and_off_it_plain_lines(tmp_path) -> None:
    small_shard(sorted(SAMPLE.glob("*.tar.gz"))[0], tmp_path / "0.tar", n_pairs=20)
    arguments = [sys.executable, "-m", "memory_builder.cli", "embed", str(tmp_path / "0.tar"), "--model", MODEL]
    plain = subprocess.run([*arguments, "--memory", str(tmp_path / "a")], capture_output=True, text=True, check=True)
    assert "embed: 1/1 shards" in plain.stderr
    assert "\x1b[" not in plain.stderr
    ours, theirs = pty.openpty()
    done = subprocess.Popen([*arguments, "--memory", str(tmp_path / "b")], stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        shown += piece
    assert done.wait() == 0
    assert b"\x1b[" in shown
    assert "━" in shown.decode()
    assert "embed: 1/1 shards" in shown.decode()
