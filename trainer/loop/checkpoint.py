"""``RUN/checkpoints/<step>/``: what was added or learns and what it takes to go on, never a tensor of the frozen model.

Data first, ``state.json`` last; a folder without it does not exist. Nothing draws from a random generator's state:
order and augmentation follow from seed, epoch and pair, so a step's number is all there is to go on from.
"""

import json
import re
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
from pydantic import StringConstraints
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from memory_builder.base.progress import say, warn
from memory_builder.errors import ConfigMismatchError, CorruptMemoryError, UsageError
from memory_builder.storage.records import Count, Digest, read_record, strict_record
from memory_builder.storage.store import Store, sha256
from trainer.loop.config import LoopConfig
from trainer.loop.optimizer import (
    Parameters,
    make_optimizer,
    optimizer_shapes,
    optimizer_tensors,
    restore_optimizer,
    update_average,
)

FOLDER = "checkpoints"
TRAINABLE, OPTIMIZER, AVERAGE, STATE = "trainable.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json"


@strict_record
@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """``state.json``, the commit."""

    step: Count
    """Steps taken."""
    n_steps: Count
    """Steps of the whole run."""
    loss: float
    checksums: dict[Annotated[str, StringConstraints(pattern="^(trainable|optimizer|ema)[.]safetensors$")], Digest]
    """SHA-256 of the files beside it."""
    bf16: bool | None = None
    """Whether the last step was computed under bf16 autocast; None in checkpoints of before it was told."""


def read_states(run: Store) -> dict[str, State]:
    """Every checkpoint of a run with a sound record by its folder, the oldest first; damaged ones are said."""
    states = {}
    for folder in _folders(run):
        path = f"{FOLDER}/{folder}/{STATE}"
        try:
            state = read_record(run, path, State)
            if state is not None and state.step != int(folder):
                raise CorruptMemoryError(f"{run.root}/{path} is damaged (step: it is of step {state.step})")
        except CorruptMemoryError as error:
            warn(f"{error.problem}: that checkpoint counts as not written")
            continue
        if state is not None:
            states[folder] = state
    return states


def _folders(run: Store) -> list[str]:
    """Of the folders that are called as checkpoints are, the names, ascending."""
    return [name for name in run.list(FOLDER, "directory") if re.fullmatch("[0-9]{8,}", name)]


def last_state(run: Store) -> State | None:
    """The newest checkpoint's record."""
    return next(reversed(read_states(run).values()), None)


def whole_state(run: Store) -> State | None:
    """The record of the newest checkpoint whose files are all what it says; those that are not are said."""
    for state in reversed(read_states(run).values()):
        try:
            for name in state.checksums:
                _read_file(run, state, name)
        except CorruptMemoryError as error:
            warn(f"{error.problem}: the checkpoint before it is taken, if there is one")
            continue
        return state
    return None


def is_finished(run: Store) -> bool:
    """Whether a run has taken its last step; tells of one that has."""
    state = whole_state(run)
    if state is None or state.step < state.n_steps:
        return False
    say(f"{run.root} is finished: {state.step:,} steps, loss {state.loss:.4f}; nothing to do")
    return True


def chosen_state(run: Store, step: int | None = None) -> State:
    """The checkpoint of a step, or the newest.

    Raises:
        UsageError: there is none.
    """
    states = read_states(run)
    state = last_state(run) if step is None else states.get(f"{step:08d}")
    if state is None:
        asked = "" if step is None else f" of step {step}"
        there = ", ".join(str(int(name)) for name in states) or "none yet"
        raise UsageError(f"{run.root} has no checkpoint{asked}; there are: {there}")
    return state


class Progressed:
    """How far a run has come: the parameters, their optimizer, their average, and the number of steps taken."""

    def __init__(self, parameters: Parameters, config: LoopConfig) -> None:
        self.parameters, self.step = parameters, 0
        self.bf16: bool | None = None
        self.learning: Parameters = {name: some for name, some in parameters.items() if some.requires_grad}
        self.optimizer = make_optimizer(self.learning, config.optimizer)
        self.average: dict[str, Tensor] | None = None
        if config.optimizer.ema is not None:
            self.average = {name: some.detach().clone() for name, some in parameters.items()}

    @classmethod
    def resume(cls, run: Store, parameters: Parameters, config: LoopConfig) -> "Progressed":
        """As the newest whole checkpoint says, or at the beginning.

        Raises:
            ConfigMismatchError: other parameters learn than did then.
        """
        progress, state = cls(parameters, config), whole_state(run)
        if state is not None:
            assign(parameters, read_tensors(run, state, TRAINABLE), run.root)
            kept = read_tensors(run, state, OPTIMIZER)
            _refuse_others(kept, optimizer_shapes(progress.learning), run.root)
            restore_optimizer(progress.optimizer, progress.learning, kept)
            if progress.average is not None:
                average = read_tensors(run, state, AVERAGE)
                _refuse_others(average, {name: tuple(some.shape) for name, some in parameters.items()}, run.root)
                progress.average.update(average)
                progress.average = {name: some.to(parameters[name].device) for name, some in progress.average.items()}
            progress.step, progress.bf16 = state.step, state.bf16
        return progress

    def advance(self, ema: float | None) -> None:
        """One step was taken."""
        self.step += 1
        if self.average is not None and ema is not None:
            update_average(self.average, self.parameters, ema)

    def save(self, run: Store, n_steps: int, loss: float, keep: int) -> None:
        """Write a checkpoint, then remove all but the newest ``keep``."""
        folder = f"{self.step:08d}"
        files = {TRAINABLE: pack(self.parameters), OPTIMIZER: pack(optimizer_tensors(self.optimizer, self.learning))}
        if self.average is not None:
            files[AVERAGE] = pack(self.average)
        for name, data in files.items():
            run.put(f"{FOLDER}/{folder}/{name}", data)
        checksums = {name: sha256(data) for name, data in files.items()}
        state = State(step=self.step, n_steps=n_steps, loss=loss, checksums=checksums, bf16=self.bf16)
        run.put(f"{FOLDER}/{folder}/{STATE}", json.dumps(asdict(state), indent=1).encode())
        older = [name for name in _folders(run) if int(name) < self.step]
        for name in older[: max(0, len(older) + 1 - keep)]:
            with suppress(FileNotFoundError):  # a killed run may have left a folder without a record
                run.remove(f"{FOLDER}/{name}/{STATE}")
            run.remove_folder(f"{FOLDER}/{name}")


def read_tensors(run: Store, state: State, name: str) -> dict[str, Tensor]:
    """A file of a checkpoint, checked against its record.

    Raises:
        UsageError: this checkpoint has no such file.
        CorruptMemoryError: it is missing or is not what the record says.
    """
    if name not in state.checksums:
        raise UsageError(
            f"{run.root}/{_path(state, name)} was never written: train with --ema, or ask for the parameters themselves"
        )
    data = _read_file(run, state, name)
    try:
        return load(data)
    except (SafetensorError, ValueError, KeyError, MemoryError) as error:
        raise _damaged(run, state, name, f"is damaged ({error})") from None


def _path(state: State, name: str) -> str:
    return f"{FOLDER}/{state.step:08d}/{name}"


def _read_file(run: Store, state: State, name: str) -> bytes:
    try:
        data = run.read(_path(state, name))
    except FileNotFoundError:
        raise _damaged(run, state, name, "is missing") from None
    if sha256(data) != state.checksums[name]:
        raise _damaged(run, state, name, "is not what its state.json says")
    return data


def _damaged(run: Store, state: State, name: str, what: str) -> CorruptMemoryError:
    return CorruptMemoryError(
        f"{run.root}/{_path(state, name)} {what}",
        "run the same training again, which goes on from the checkpoint before; or name another --step",
    )


def assign(parameters: Parameters, tensors: dict[str, Tensor], where: str) -> None:
    """Set parameters to stored tensors, every one of them and no others.

    Raises:
        ConfigMismatchError: names or shapes differ.
    """
    _refuse_others(tensors, {name: tuple(parameter.shape) for name, parameter in parameters.items()}, where)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def _refuse_others(tensors: dict[str, Tensor], wanted: dict[str, tuple[int, ...]], where: str) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if shapes != wanted:
        differing = sorted(name for name in shapes.keys() | wanted.keys() if shapes.get(name) != wanted.get(name))
        raise ConfigMismatchError(
            f"{where} holds other parameters than are trained here: {len(differing)} differ, such as {differing[0]} "
            f"(there {shapes.get(differing[0])}, here {wanted.get(differing[0])})"
        )


def pack(tensors: Any) -> bytes:
    """Named tensors as safetensors; equal tensors give equal bytes."""
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())})
