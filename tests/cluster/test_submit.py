import shlex
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Annotated, get_args, get_origin, get_type_hints

import pytest

from cluster.submit import STAGES, next_id, on_cluster, submit
from memory_builder.cli import command_class
from memory_builder.commands.help import SUMMARIES
from memory_builder.errors import ConnectionFailedError, UsageError

# Ray's client, with aiohttp 3.14.
pytestmark = pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning")


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("embed 'a b.tar' --memory m", "embed 'a b.tar' --memory m --runner ray --address auto"),
        ("memory-builder train react s --out r", "train react s --out r --runner ray --address auto"),
        ("index m --runner local", "index m --runner local"),
        ("index m --runner=ray", "index m --runner=ray"),
        ("info m --json", "info m --json"),
        ("compact m --purge", "compact m --purge --runner ray --address auto"),
        ("train export r --out o", "train export r --out o"),
        ("evaluate zero-shot --dataset d", "evaluate zero-shot --dataset d"),
        ("train", "train"),
        ("", ""),
    ],
)
def test_a_stage_runs_on_the_cluster_unless_it_says_otherwise(command, arguments):
    assert on_cluster(shlex.split(command)) == shlex.split(arguments)


def test_stages_are_the_commands_that_take_a_runner():
    every = [(name, command_class(name)) for name in SUMMARIES]
    every += [found for name, command in every for found in subcommands(command, f"{name} ")]
    assert {name for name, command in every if takes_runner(command)} == STAGES


def subcommands(command: type, before: str) -> Iterator[tuple[str, type]]:
    """(name, class) of the subcommands of a command: ``train react``."""
    for hint in get_type_hints(command, include_extras=True).values():
        members = get_args(get_args(hint)[0]) if get_origin(hint) is Annotated else ()
        if members and all(get_origin(member) is Annotated for member in members):
            for member in members:
                kind, *marks = get_args(member)
                yield before + next(mark.name for mark in marks if getattr(mark, "name", None)), kind


def takes_runner(command: type) -> bool:
    """Whether ``--runner`` and ``--address`` are among its flags."""
    options = [hint for hint in get_type_hints(command).values() if is_dataclass(hint)]
    return any({"runner", "address"} <= {field.name for field in fields(option)} for option in options)


def test_the_next_attempt_of_the_same_command():
    first = next_id(["info", "m"], [])
    stage, digest, attempt = first.split("-")
    assert (stage, len(digest), attempt) == ("info", 8, "1")
    taken = [f"info-{digest}-2", f"info-{digest}-10", f"info-{digest}-x", "embed-00000000-77"]
    assert next_id(["info", "m"], taken) == f"info-{digest}-11"
    assert next_id(["info", "n"], taken).endswith("-1")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:1", "no Ray job server answers at --address http://127.0.0.1:1"),
        ("127.0.0.1:8265", "expected the URL of the cluster's job server"),
    ],
)
def test_an_address_where_nothing_answers(monkeypatch, address, message):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    kind = ConnectionFailedError if address.startswith("http") else UsageError
    with pytest.raises(kind, match=message):
        submit(address, ["info", "m"])


def test_a_ray_address_in_the_environment_does_not_win_silently(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(UsageError, match=r"RAY_ADDRESS=10\.0\.0\.1:6379 would override"):
        submit("http://127.0.0.1:8265", ["info", "m"])


@pytest.mark.ray
def test_a_stage_as_a_job_on_its_own_cluster(ray_cluster, sample, model, tmp_path, capfd):
    command = ["embed", sample[0], "--memory", str(tmp_path / "memory"), "--model", model]
    assert submit(ray_cluster.job_server, command) == 0
    output = capfd.readouterr()
    assert "embed: 1/1 shards" in output.out
    assert "job embed-" in output.err
    assert (tmp_path / "memory" / "commits" / "00000.json").exists()


@pytest.mark.ray
def test_a_job_that_is_wrong_usage_exits_as_the_command_does(ray_cluster, tmp_path, capfd):
    assert submit(ray_cluster.job_server, ["embed", str(tmp_path / "nothing.tar"), "--memory", "m"]) == 2
    assert "nothing.tar" in capfd.readouterr().out


@pytest.mark.ray
def test_a_job_goes_on_when_we_stop_following(ray_cluster, tmp_path, capfd, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("cluster.submit._exit_code", interrupted)
    assert submit(ray_cluster.job_server, ["info", str(tmp_path)], submission_id="mine") == 130
    error = capfd.readouterr().err
    assert f"ray job logs --address {ray_cluster.job_server} --follow mine" in error
    assert f"ray job stop --address {ray_cluster.job_server} mine" in error
    with pytest.raises(UsageError, match="refused job mine"):
        submit(ray_cluster.job_server, ["info", str(tmp_path)], submission_id="mine")
