"""``RUN/config.json``: settings and frozen model of a run; a checkpoint is resumed with the same settings only."""

import json
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any, Literal

from memory_builder.base.log import warn_once
from memory_builder.errors import ConfigMismatchError, CorruptMemoryError, UsageError
from memory_builder.storage.records import decode_value, partial_record, reading
from memory_builder.storage.store import Store

NAME = "config.json"
FIX = "run the same training again, which rewrites it, or remove it and train into another --out"


@partial_record
@dataclass(frozen=True, kw_only=True, slots=True)
class FrozenModel:
    """The frozen model of a run, as its record names it."""

    model: str
    pretrained: str | None = None


@partial_record
@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """``config.json``: the fields that every reader needs."""

    kind: Literal["react", "reco"]
    fingerprint: str
    encoder: FrozenModel


def read_run_config(run: Store) -> dict[str, Any] | None:
    """The record of a run, or None if the folder has none.

    Raises:
        CorruptMemoryError: the record is damaged.
    """
    record = run.read_json(NAME, fix=FIX)
    if record is not None:
        decode_value(RunRecord, record, where=f"{run.root}/{NAME}", fix=FIX)
    return record


def reading_settings(run: Store) -> AbstractContextManager[None]:
    """Context in which an error while decoding settings names ``config.json`` as damaged."""
    return reading(f"{run.root}/{NAME}", FIX)


def read_run(run: Store, kind: str) -> dict[str, Any]:
    """The record of a run of ``train react`` or ``train reco``.

    Raises:
        UsageError: the folder holds no run, or one of the other kind.
    """
    record = read_run_config(run)
    if record is None or record.get("kind") != kind:
        content = "no run" if record is None else f"a run of train {record.get('kind')}"
        raise UsageError(f"{run.root} holds {content}: name the --out folder of memory-builder train {kind}")
    return record


def refuse_other_settings(run: Store, settings: dict[str, Any]) -> None:
    """Compare the settings with those of a run that has a checkpoint; before its first, settings may still change.

    Raises:
        ConfigMismatchError: the run has other settings.
    """
    record = _sound_record(run)
    if not _has_checkpoint(run):
        return
    if record is None:
        warn_once(f"{run.root}/{NAME} is missing or damaged: whether the run has the same settings is not known")
        return
    wanted = _flat(json.loads(json.dumps(settings)))
    stored = _flat({name: record.get(name) for name in settings})
    differing = sorted(name for name in stored.keys() | wanted.keys() if stored.get(name) != wanted.get(name))
    if differing:
        values = ", ".join(f"{name} ({stored.get(name)} then, {wanted.get(name)} now)" for name in differing)
        raise ConfigMismatchError(
            f"{run.root} was trained with other settings: {values}. Use the same settings or another --out"
        )


def _sound_record(run: Store) -> dict[str, Any] | None:
    with suppress(CorruptMemoryError):
        return read_run_config(run)
    return None


def create_or_compare_config(run: Store, record: dict[str, Any]) -> None:
    """Write the record of a run, or compare it with that of a run that has a checkpoint.

    Raises:
        ConfigMismatchError: see ``refuse_other_settings``.
    """
    refuse_other_settings(run, record)
    if not _has_checkpoint(run) or _sound_record(run) is None:
        run.put(NAME, json.dumps(record, indent=1).encode())


def _has_checkpoint(run: Store) -> bool:
    from trainer.loop.checkpoint import newest_checkpoint  # imports torch; settings are compared before that

    return newest_checkpoint(run) is not None


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested settings by dotted names."""
    if not isinstance(value, dict):
        return {name: value}
    return {key: leaf for part, own in value.items() for key, leaf in _flat(own, f"{name}.{part}".strip(".")).items()}
