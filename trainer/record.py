"""``RUN/config.json``: what was asked for and of which model, written once; a run goes on only as it began."""

import json
from typing import Any

from memory_builder.errors import ConfigMismatchError, UsageError
from memory_builder.storage import Store

NAME = "config.json"


def read_record(run: Store) -> dict[str, Any] | None:
    """What lies there, or None."""
    return run.read_json(NAME)


def read_run(run: Store, kind: str) -> dict[str, Any]:
    """The record of a run that must be there.

    Raises:
        UsageError: there is none, or it is of another kind.
    """
    record = read_record(run)
    if record is None or record.get("kind") != kind:
        there = "no run" if record is None else f"a run of train {record.get('kind')}"
        raise UsageError(f"{run.root} holds {there}: name the --out folder of memory-builder train {kind}")
    return record


def refuse_other(run: Store, record: dict[str, Any], asked: dict[str, Any]) -> None:
    """Compare what lies there with what is asked for, by the names of the latter.

    Raises:
        ConfigMismatchError: they differ.
    """
    asked = json.loads(json.dumps(asked))
    there, here = _flat({name: record.get(name) for name in asked}), _flat(asked)
    differing = sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))
    if differing:
        told = ", ".join(f"{name} ({there.get(name)} there, {here.get(name)} asked)" for name in differing)
        raise ConfigMismatchError(f"{run.root} was trained otherwise: {told}. Use the same settings or another --out")


def refuse_begun_otherwise(run: Store, asked: dict[str, Any]) -> None:
    """``refuse_other``, for a run that has a checkpoint; before its first, settings may still be mended.

    Raises:
        ConfigMismatchError: the run was begun with other settings.
    """
    record = read_record(run)
    if record is not None and _has_checkpoint(run):
        refuse_other(run, record, asked)


def settle_record(run: Store, record: dict[str, Any]) -> None:
    """Write it, in the place of another with which nothing was learnt.

    Raises:
        ConfigMismatchError: the run was begun with another.
    """
    refuse_begun_otherwise(run, record)
    data = json.dumps(record, indent=1).encode()
    if not _has_checkpoint(run):
        run.put(NAME, data)


def _has_checkpoint(run: Store) -> bool:
    from trainer.checkpoint import last_state  # imports torch, and what a run began with is read before that

    return last_state(run) is not None


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    return {key: leaf for part, some in value.items() for key, leaf in _flat(some, f"{name}.{part}".strip(".")).items()}
