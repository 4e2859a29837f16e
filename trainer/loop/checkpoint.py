"""``RUN/checkpoints/<step>/``: trained parameters, optimizer and average, without the frozen model's tensors.

Data first, ``state.json`` last; a folder without it does not exist. No random generator is stored: sampling and
augmentation follow from seed, epoch and pair, so the step number is enough to resume.
"""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
from pydantic import StringConstraints
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from memory_builder.base.log import logger, warn_once
from memory_builder.errors import ConfigMismatchError, CorruptMemoryError, UsageError
from memory_builder.storage.records import Count, Digest, read_record, strict_record
from memory_builder.storage.store import Store, sha256

FOLDER = "checkpoints"
TRAINABLE, OPTIMIZER, AVERAGE = "trainable.safetensors", "optimizer.safetensors", "ema.safetensors"
RECORD = "state.json"


@strict_record
@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointRecord:
    """``state.json``, written last."""

    step: Count
    """Steps taken so far."""
    n_steps: Count
    """Steps of the whole run."""
    loss: float
    checksums: dict[Annotated[str, StringConstraints(pattern="^(trainable|optimizer|ema)[.]safetensors$")], Digest]
    """SHA-256 of the other files of the checkpoint."""
    bf16: bool | None = None
    """Whether the last step was computed under bf16 autocast; None in checkpoints of older versions."""


def read_checkpoints(run: Store) -> dict[str, CheckpointRecord]:
    """The records of a run's checkpoints by folder, the oldest first; warns of damaged ones and leaves them out."""
    records = {}
    for folder in checkpoint_folders(run):
        path = f"{FOLDER}/{folder}/{RECORD}"
        try:
            record = read_record(run, path, CheckpointRecord)
            if record is not None and record.step != int(folder):
                raise CorruptMemoryError(f"{run.root}/{path} is damaged (step: {record.step}, not {int(folder)})")
        except CorruptMemoryError as error:
            warn_once(f"{error.problem}: the checkpoint is ignored")
            continue
        if record is not None:
            records[folder] = record
    return records


def checkpoint_folders(run: Store) -> list[str]:
    """Names of the folders named like checkpoints, ascending."""
    return [name for name in run.list(FOLDER, "directory") if re.fullmatch("[0-9]{8,}", name)]


def newest_checkpoint(run: Store) -> CheckpointRecord | None:
    """The record of the newest checkpoint."""
    return next(reversed(read_checkpoints(run).values()), None)


def newest_sound_checkpoint(run: Store) -> CheckpointRecord | None:
    """The record of the newest checkpoint whose files match their checksums; warns of newer ones that do not."""
    for record in reversed(read_checkpoints(run).values()):
        try:
            for name in record.checksums:
                _read_file(run, record, name)
        except CorruptMemoryError as error:
            warn_once(f"{error.problem}: resuming from the checkpoint before it, if there is one")
            continue
        return record
    return None


def is_finished(run: Store) -> bool:
    """Whether a run has taken its last step; prints a line if it has."""
    record = newest_sound_checkpoint(run)
    if record is None or record.step < record.n_steps:
        return False
    logger.info(f"{run.root} is finished: {record.step:,} steps, loss {record.loss:.4f}; nothing to do")
    return True


def find_checkpoint(run: Store, step: int | None = None) -> CheckpointRecord:
    """The record of the checkpoint of a step, or of the newest.

    Raises:
        UsageError: the run has no such checkpoint.
    """
    records = read_checkpoints(run)
    record = next(reversed(records.values()), None) if step is None else records.get(f"{step:08d}")
    if record is None:
        wanted = "" if step is None else f" of step {step}"
        steps = ", ".join(str(int(name)) for name in records) or "none yet"
        raise UsageError(f"{run.root} has no checkpoint{wanted}; its checkpoints: {steps}")
    return record


def write_checkpoint(run: Store, tensors: Mapping[str, Mapping[str, Tensor]], keep: int, **record: Any) -> None:
    """Write the files of a checkpoint and then its record, and remove all but the newest ``keep`` checkpoints.

    Args:
        run: folder of the run.
        tensors: file name → tensors by name.
        keep: number of checkpoints to keep.
        record: fields of ``CheckpointRecord`` other than ``checksums``.
    """
    files = {name: pack(by_name) for name, by_name in tensors.items()}
    written = CheckpointRecord(checksums={name: sha256(data) for name, data in files.items()}, **record)
    folder = f"{written.step:08d}"
    for name, data in files.items():
        run.put(f"{FOLDER}/{folder}/{name}", data)
    run.put(f"{FOLDER}/{folder}/{RECORD}", json.dumps(asdict(written), indent=1).encode())
    older = [name for name in checkpoint_folders(run) if int(name) < written.step]
    for name in older[: max(0, len(older) + 1 - keep)]:
        with suppress(FileNotFoundError):  # a killed run may have left a folder without a record
            run.remove(f"{FOLDER}/{name}/{RECORD}")
        run.remove_folder(f"{FOLDER}/{name}")


def read_tensors(run: Store, record: CheckpointRecord, name: str) -> dict[str, Tensor]:
    """The tensors in a file of a checkpoint, checked against its record.

    Raises:
        UsageError: the checkpoint has no such file.
        CorruptMemoryError: the file is missing or damaged.
    """
    if name not in record.checksums:
        raise UsageError(
            f"{run.root}/{_path(record, name)} was never written: train with --ema, or leave out --ema to load the "
            "parameters themselves"
        )
    data = _read_file(run, record, name)
    try:
        return load(data)
    except (SafetensorError, ValueError, KeyError, MemoryError) as error:
        raise _damaged(run, record, name, f"is damaged ({error})") from None


def _path(record: CheckpointRecord, name: str) -> str:
    return f"{FOLDER}/{record.step:08d}/{name}"


def _read_file(run: Store, record: CheckpointRecord, name: str) -> bytes:
    try:
        data = run.read(_path(record, name))
    except FileNotFoundError:
        raise _damaged(run, record, name, "is missing") from None
    if sha256(data) != record.checksums[name]:
        raise _damaged(run, record, name, "does not match the checksum in its state.json")
    return data


def _damaged(run: Store, record: CheckpointRecord, name: str, what: str) -> CorruptMemoryError:
    return CorruptMemoryError(
        f"{run.root}/{_path(record, name)} {what}",
        "run the same training again, which resumes from the checkpoint before it; or name another --step",
    )


def assign(parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor], where: str) -> None:
    """Set parameters to stored tensors of the same names and shapes.

    Raises:
        ConfigMismatchError: names or shapes differ.
    """
    refuse_other_shapes(tensors, {name: tuple(parameter.shape) for name, parameter in parameters.items()}, where)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def refuse_other_shapes(tensors: Mapping[str, Tensor], wanted: dict[str, tuple[int, ...]], where: str) -> None:
    """Compare names and shapes of stored tensors with the wanted ones.

    Raises:
        ConfigMismatchError: they differ.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if shapes != wanted:
        differing = sorted(name for name in shapes.keys() | wanted.keys() if shapes.get(name) != wanted.get(name))
        raise ConfigMismatchError(
            f"{where} holds other parameters than are trained here: {len(differing)} differ, such as {differing[0]} "
            f"(stored {shapes.get(differing[0])}, here {wanted.get(differing[0])})"
        )


def pack(tensors: Any) -> bytes:
    """Named tensors as safetensors bytes; equal tensors give equal bytes."""
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())})
