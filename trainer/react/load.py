"""A run of ``train react`` as a model: its frozen model with what it learnt in place, wholly or part of the way.

Part of the way is WiSE-FT (Wortsman et al., Robust fine-tuning of zero-shot models, 2022): weights between those of the
frozen model (0) and the customised one (1). A gated block that is not there is one whose output projections are zero,
so between means tanh of each gate times the share: the same as interpolating the weights of the exported model.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from memory_builder.catalog.trusted import trusted_encoder
from memory_builder.errors import EncoderError, UsageError
from memory_builder.model.encoder import Encoder, EncoderConfig
from memory_builder.storage.store import Store, sha256
from trainer.loop.checkpoint import AVERAGE, TRAINABLE, assign, chosen_state, pack, read_tensors
from trainer.loop.run_config import read_run, reading_settings
from trainer.react.config import GatedConfig, ReactConfig
from trainer.react.gated import GATES, NAME
from trainer.react.learner import ReactLearner

Tensors = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """Which state of a run."""

    run: str
    step: int | None = None
    """A checkpoint's step; the newest unless given."""
    ema: bool = False
    """The moving average instead of the parameters themselves."""
    share: float = 1.0
    """0: the frozen model, 1: the customised one; between, and a little beyond, their weights' mixture."""

    encoder: EncoderConfig | None = None
    """Where the run's frozen model is, if it is from elsewhere or has moved; weights must be the same."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.share) or self.share < 0:
            raise UsageError(f"--share {self.share:g}: 0 for the frozen model, 1 for the customised one, or between")


@dataclass(frozen=True, kw_only=True, slots=True)
class Customised:
    """A loaded run."""

    encoder: Encoder
    """Its model is the customised one; the rest, the fingerprint too, is the frozen model's."""
    fingerprint: str
    """Of the customised model."""
    config: ReactConfig
    step: int


def load_customised(choice: Choice) -> Customised:
    """Load the frozen model of a run and put in place what was learnt.

    Raises:
        UsageError: there is no such run, checkpoint or average.
        EncoderError: the frozen model is not there any more, or is another.
        CorruptMemoryError: a checkpoint is damaged.
    """
    run = Store(choice.run)
    record = read_run(run, "react")
    state = chosen_state(run, choice.step)
    with reading_settings(run):
        told = dict(record["react"])
        for_use = {"compile": False, "activation_checkpointing": False}
        config = ReactConfig(**told | for_use | {"gated": GatedConfig(**told["gated"])})
        built_in = EncoderConfig(**record["encoder"])
    frozen = choice.encoder or trusted_encoder(built_in, run.root)
    encoder = Encoder(replace(frozen, precision="fp32"))
    if encoder.fingerprint != record["fingerprint"]:
        raise EncoderError(
            f"{run.root} was trained in another model than {encoder.config.model} is now ({record['fingerprint'][:12]} "
            f"then, {encoder.fingerprint[:12]} now): bring that one back"
        )
    learner = ReactLearner(encoder.model, config, encoder.config.model)
    learnt = read_tensors(run, state, AVERAGE if choice.ema else TRAINABLE)
    before = {name: some.detach().clone() for name, some in learner.parameters.items()}
    assign(learner.parameters, mixed(before, learnt, choice.share), run.root)
    digest = sha256(pack(learner.parameters))
    encoder.model.requires_grad_(False)
    fingerprint = sha256(f"{encoder.fingerprint} {digest}".encode())
    return Customised(encoder=encoder, fingerprint=fingerprint, config=config, step=state.step)


def mixed(before: Tensors, learnt: Tensors, share: float) -> Tensors:
    """Parameters between the frozen model's and the learnt ones; with share 1 the learnt ones, bit for bit."""
    if share == 1:
        return learnt
    return {name: _mixed(name, before[name], some.to(before[name].device), share) for name, some in learnt.items()}


def _mixed(name: str, before: Tensor, learnt: Tensor, share: float) -> Tensor:
    if f".{NAME}." not in name:
        return torch.lerp(before, learnt.to(before.dtype), share)
    if name.rsplit(".", 1)[1] in GATES:
        return torch.atanh((share * learnt.tanh()).clamp(-1 + 1e-6, 1 - 1e-6))
    return learnt
