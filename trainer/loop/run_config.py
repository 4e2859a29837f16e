"""``RUN/config.json``: what was asked for and of which model, written once; a run goes on only as it began."""

import json
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any, Literal

from memory_builder.base.progress import warn
from memory_builder.errors import ConfigMismatchError, CorruptMemoryError, UsageError
from memory_builder.storage.records import decode_value, partial_record, reading
from memory_builder.storage.store import Store

NAME = "config.json"


FIX = "run the same training again, which writes it anew, or remove it and train into another --out"


@partial_record
@dataclass(frozen=True, kw_only=True, slots=True)
class Encoding:
    """The frozen model of a run."""

    model: str
    pretrained: str | None = None


@partial_record
@dataclass(frozen=True, kw_only=True, slots=True)
class Begun:
    """``config.json``, as far as every reader needs it."""

    kind: Literal["react", "reco"]
    fingerprint: str
    encoder: Encoding


def read_record(run: Store) -> dict[str, Any] | None:
    """What lies there, or None.

    Raises:
        CorruptMemoryError: it is damaged.
    """
    record = run.read_json(NAME, fix=FIX)
    if record is not None:
        decode_value(Begun, record, where=f"{run.root}/{NAME}", fix=FIX)
    return record


def reading_settings(run: Store) -> AbstractContextManager[None]:
    """Settings that cannot be made of what lies there are its fault, and are said of it."""
    return reading(f"{run.root}/{NAME}", FIX)


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
    record = _sound_record(run)
    if not _has_checkpoint(run):
        return
    if record is None:
        warn(
            f"{run.root}/{NAME} is missing or damaged: that the settings are those the run was begun with is not known"
        )
    else:
        refuse_other(run, record, asked)


def _sound_record(run: Store) -> dict[str, Any] | None:
    with suppress(CorruptMemoryError):
        return read_record(run)
    return None


def settle_record(run: Store, record: dict[str, Any]) -> None:
    """Write it, in the place of another with which nothing was learnt.

    Raises:
        ConfigMismatchError: the run was begun with another.
    """
    refuse_begun_otherwise(run, record)
    data = json.dumps(record, indent=1).encode()
    if not _has_checkpoint(run) or _sound_record(run) is None:
        run.put(NAME, data)


def _has_checkpoint(run: Store) -> bool:
    from trainer.loop.checkpoint import last_state  # imports torch, and what a run began with is read before that

    return last_state(run) is not None


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    return {key: leaf for part, some in value.items() for key, leaf in _flat(some, f"{name}.{part}".strip(".")).items()}
