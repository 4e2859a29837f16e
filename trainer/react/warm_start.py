"""Begin with parameters that were trained before: another run's, or a checkpoint released by REACT's authors."""

from pathlib import Path

import torch
from torch import Tensor

from memory_builder.base.progress import say
from memory_builder.errors import EncoderError, UsageError
from memory_builder.storage.store import Store
from trainer.loop.checkpoint import TRAINABLE, assign, chosen_state, read_tensors
from trainer.loop.run_config import read_run
from trainer.react.gated import NAME
from trainer.react.learner import ReactLearner
from trainer.react.released_checkpoint import gated_layers, read_released

Tensors = dict[str, Tensor]


def start_from(source: str, learner: ReactLearner, fingerprint: str) -> None:
    """Set the parameters that are found in ``source``, and say which are not.

    Raises:
        EncoderError: they were trained in another frozen model.
        UsageError: it is neither a run nor a checkpoint, lacks what cannot be learnt here, or was trained in what
            stays frozen here.
        ConfigMismatchError: shapes differ.
    """
    if Path(source).is_file():
        found = read_released(source)
        settings = f"--mode gated-image --last-k {len(gated_layers(found))} --logit-scale trainable"
        _refuse_other_model(source, found, learner)
    else:
        found, settings = _of_run(Store(source), fingerprint)
    parameters = learner.parameters
    here = {name: parameter for name, parameter in parameters.items() if name in found}
    missing = [name for name in parameters if name not in found]
    stay = [name for name in missing if not parameters[name].requires_grad]
    if stay or not here.keys() - {"logit_scale"}:
        raise UsageError(
            f"{source} does not hold {(stay or missing)[0]} and others that are to begin with: name a run, or a "
            "released checkpoint, that trained what is trained here"
        )
    _refuse_loss(source, found, learner, settings)
    assign(here, {name: found[name] for name in here}, source)
    if missing:
        say(f"{source} sets {len(here)} of {len(parameters)} parameters; {missing[0]} and others start as they were")


def _of_run(run: Store, fingerprint: str) -> tuple[Tensors, str]:
    """(what learnt there, the settings that say so)."""
    record = read_run(run, "react")
    if record["fingerprint"] != fingerprint:
        raise EncoderError(
            f"{run.root} was trained in {record['encoder']['model']} ({record['fingerprint'][:12]}), and this is "
            f"another model ({fingerprint[:12]})"
        )
    told = record["react"]
    settings = f"--mode {told['mode']} --logit-scale {told['logit_scale']}"
    if told["mode"] == "gated-image":
        settings += f" --last-k {told['gated']['last_k']} --branches {told['gated']['branches']}"
    return read_tensors(run, chosen_state(run), TRAINABLE), settings


def _refuse_other_model(source: str, found: Tensors, learner: ReactLearner) -> None:
    """Compare what is frozen here, as far as the file holds it; the scale learnt there, frozen here or not."""
    for name, here in learner.model.named_parameters():
        if name not in found or name in learner.parameters or name == "logit_scale":
            continue
        if not _is_same(here, found[name]):
            raise EncoderError(f"{source} was trained in another --model: {name} is not the same there and here")


def _refuse_loss(source: str, found: Tensors, learner: ReactLearner, settings: str) -> None:
    """A run that goes on looks for what it began with in its own checkpoints, so what stays frozen cannot be set."""
    own = dict(learner.model.named_parameters())
    lost = [
        name
        for name, there in found.items()
        if name not in learner.parameters
        and (f".{NAME}." in name if name not in own else not _is_same(own[name], there))
    ]
    if lost:
        raise UsageError(
            f"{source} trained {lost[0]}" + (f" and {len(lost) - 1} others" if len(lost) > 1 else "") + ", which would "
            f"be lost, as nothing of that learns here: use the settings that it was trained with ({settings})"
        )


def _is_same(here: Tensor, there: Tensor) -> bool:
    return there.shape == here.shape and torch.allclose(here.detach().cpu().to(there.dtype), there)
