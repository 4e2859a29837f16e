"""Warm start: initial parameters from another run, or from a checkpoint released by REACT's authors."""

from pathlib import Path

import torch
from torch import Tensor

from memory_builder.base.log import logger
from memory_builder.errors import EncoderError, UsageError
from memory_builder.storage.store import Store
from trainer.loop.checkpoint import TRAINABLE, assign, find_checkpoint, read_tensors
from trainer.loop.run_config import read_run
from trainer.loop.train_state import Tensors
from trainer.react.gated import NAME
from trainer.react.learner import ReactLearner
from trainer.react.released_checkpoint import gated_layers, read_released


def start_from(source: str, learner: ReactLearner, fingerprint: str) -> None:
    """Load initial parameters from ``source``; prints which parameters it does not hold.

    Raises:
        EncoderError: they were trained on another frozen model.
        UsageError: ``source`` is neither a run nor a checkpoint, lacks parameters that stay frozen here, or trained
            parameters that would be lost.
        ConfigMismatchError: shapes differ.
    """
    if Path(source).is_file():
        stored: Tensors = read_released(source)
        settings = f"--mode gated-image --last-k {len(gated_layers(stored))} --logit-scale trainable"
        _refuse_other_model(source, stored, learner)
    else:
        stored, settings = _read_trained(Store(source), fingerprint)
    parameters = learner.parameters
    shared = {name: parameter for name, parameter in parameters.items() if name in stored}
    missing = [name for name in parameters if name not in stored]
    frozen = [name for name in missing if not parameters[name].requires_grad]
    if frozen or not shared.keys() - {"logit_scale"}:
        raise UsageError(
            f"{source} does not hold {(frozen or missing)[0]} and other initial parameters: name a run, or a released "
            "checkpoint, that trained the same parameters"
        )
    _refuse_loss(source, stored, learner, settings)
    assign(shared, {name: stored[name] for name in shared}, source)
    if missing:
        logger.info(
            f"{source} sets {len(shared)} of {len(parameters)} parameters; {missing[0]} and others stay as initialised"
        )


def _read_trained(run: Store, fingerprint: str) -> tuple[Tensors, str]:
    """(the trained parameters of a run, the flags that it was trained with)."""
    record = read_run(run, "react")
    if record["fingerprint"] != fingerprint:
        raise EncoderError(
            f"{run.root} was trained on {record['encoder']['model']} ({record['fingerprint'][:12]}), and this is "
            f"another model ({fingerprint[:12]})"
        )
    react = record["react"]
    settings = f"--mode {react['mode']} --logit-scale {react['logit_scale']}"
    if react["mode"] == "gated-image":
        settings += f" --last-k {react['gated']['last_k']} --branches {react['gated']['branches']}"
    return read_tensors(run, find_checkpoint(run), TRAINABLE), settings


def _refuse_other_model(source: str, stored: Tensors, learner: ReactLearner) -> None:
    """Compare the frozen tensors that the file holds with this model's; its logit scale may have been trained."""
    for name, own in learner.model.named_parameters():
        if name not in stored or name in learner.parameters or name == "logit_scale":
            continue
        if not _is_same(own, stored[name]):
            raise EncoderError(f"{source} was trained on another --model: its {name} differs from this model's")


def _refuse_loss(source: str, stored: Tensors, learner: ReactLearner, settings: str) -> None:
    """Refuse trained tensors without a trained parameter here: checkpoints would not hold them, nor a resumed run."""
    own = dict(learner.model.named_parameters())
    lost = [
        name
        for name, tensor in stored.items()
        if name not in learner.parameters
        and (f".{NAME}." in name if name not in own else not _is_same(own[name], tensor))
    ]
    if lost:
        raise UsageError(
            f"{source} trained {lost[0]}" + (f" and {len(lost) - 1} others" if len(lost) > 1 else "") + ", which would "
            f"be lost, as this training does not train them: use the settings of that one ({settings})"
        )


def _is_same(own: Tensor, stored: Tensor) -> bool:
    return stored.shape == own.shape and torch.allclose(own.detach().cpu().to(stored.dtype), stored)
