"""``RUN/checkpoints/<step>/``: what was added or learns and what it takes to go on, never a tensor of the frozen model.

Data first, ``state.json`` last; a folder without it does not exist. Nothing draws from a random generator's state:
order and augmentation follow from seed, epoch and pair, so a step's number is all there is to go on from.
"""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from memory_builder.errors import ConfigMismatchError, CorruptMemoryError, UsageError
from memory_builder.progress import say
from memory_builder.storage import Store, sha256
from trainer.optimizer import Parameters, make_optimizer, optimizer_tensors, restore_optimizer, update_average
from trainer.settings import LoopConfig

FOLDER = "checkpoints"
TRAINABLE, OPTIMIZER, AVERAGE, STATE = "trainable.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """``state.json``, the commit."""

    step: int
    """Steps taken."""
    n_steps: int
    """Steps of the whole run."""
    loss: float
    checksums: dict[str, str]
    """SHA-256 of the files beside it."""
    bf16: bool | None = None
    """Whether the last step was computed under bf16 autocast; None in checkpoints of before it was told."""


def read_states(run: Store) -> dict[str, State]:
    """Every whole checkpoint of a run by its folder, the oldest first."""
    states = {}
    for folder in run.list(FOLDER, "directory"):
        record = run.read_json(f"{FOLDER}/{folder}/{STATE}")
        if record is not None:
            states[folder] = State(**record)
    return states


def last_state(run: Store) -> State | None:
    """The newest checkpoint's record."""
    return next(reversed(read_states(run).values()), None)


def is_finished(run: Store) -> bool:
    """Whether a run has taken its last step; tells of one that has."""
    state = last_state(run)
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
        """As the newest checkpoint says, or at the beginning.

        Raises:
            CorruptMemoryError: a file is missing or is not what the record says.
            ConfigMismatchError: other parameters learn than did then.
        """
        progress, state = cls(parameters, config), last_state(run)
        if state is not None:
            assign(parameters, read_tensors(run, state, TRAINABLE), run.root)
            restore_optimizer(progress.optimizer, progress.learning, read_tensors(run, state, OPTIMIZER))
            if progress.average is not None:
                progress.average.update(read_tensors(run, state, AVERAGE))
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
        older = [name for name in run.list(FOLDER, "directory") if name < folder]
        for name in older[: max(0, len(older) + 1 - keep)]:
            with suppress(FileNotFoundError):  # a killed run may have left a folder without a record
                run.remove(f"{FOLDER}/{name}/{STATE}")
            run.fs.rm(run.full(f"{FOLDER}/{name}"), recursive=True)


def read_tensors(run: Store, state: State, name: str) -> dict[str, Tensor]:
    """A file of a checkpoint, checked against its record.

    Raises:
        UsageError: this checkpoint has no such file.
        CorruptMemoryError: it is missing or is not what the record says.
    """
    place = f"{FOLDER}/{state.step:08d}/{name}"
    if name not in state.checksums:
        raise UsageError(
            f"{run.root}/{place} was never written: train with --ema, or ask for the parameters themselves"
        )
    try:
        data = run.read(place)
        if sha256(data) == state.checksums[name]:
            return load(data)
        what = "is not what its state.json says"
    except FileNotFoundError:
        what = "is missing"
    except SafetensorError as error:
        what = f"is damaged ({error})"
    raise CorruptMemoryError(
        f"{run.root}/{place} {what}: remove {FOLDER}/{state.step:08d} and run the command again; it goes on from the "
        "checkpoint before"
    )


def assign(parameters: Parameters, tensors: dict[str, Tensor], where: str) -> None:
    """Set parameters to stored tensors, every one of them and no others.

    Raises:
        ConfigMismatchError: names or shapes differ.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wanted = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    if shapes != wanted:
        differing = sorted(name for name in shapes.keys() | wanted.keys() if shapes.get(name) != wanted.get(name))
        raise ConfigMismatchError(
            f"{where} holds other parameters than are trained here: {len(differing)} differ, such as {differing[0]} "
            f"(there {shapes.get(differing[0])}, here {wanted.get(differing[0])})"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def pack(tensors: Any) -> bytes:
    """Named tensors as safetensors; equal tensors give equal bytes."""
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())})
