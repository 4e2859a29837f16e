"""Loading a run of ``train react`` as a model, at full strength or interpolated with the frozen model (WiSE-FT).

WiSE-FT (Wortsman et al., Robust fine-tuning of zero-shot models, 2022) interpolates the weights of the frozen model
(``wise_alpha`` 0) and the customised one (1). The frozen model has gated blocks with output projections of zero, so
tanh of each gate is multiplied by ``wise_alpha``: the same as interpolating the weights of the exported model.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from memory_builder.catalog.trusted_sources import trusted_encoder
from memory_builder.errors import EncoderError, UsageError
from memory_builder.model.encoder import Encoder, EncoderConfig
from memory_builder.storage.store import Store, sha256
from trainer.loop.checkpoint import AVERAGE, TRAINABLE, assign, find_checkpoint, pack, read_tensors
from trainer.loop.run_config import read_run, reading_settings
from trainer.loop.train_state import Tensors
from trainer.react.config import GatedConfig, ReactConfig
from trainer.react.gated import GATES, NAME
from trainer.react.learner import ReactLearner


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointRef:
    """A checkpoint of a run, and how to load it."""

    run: str
    """Folder of the run."""
    step: int | None = None
    """Step of the checkpoint (default: the newest)."""
    ema: bool = False
    """Load the moving average instead of the parameters."""
    wise_alpha: float = 1.0
    """WiSE-FT interpolation weight: 0 is the frozen model, 1 the customised one; a little more than 1 extrapolates."""
    encoder: EncoderConfig | None = None
    """Where the run's frozen model is now (default: as recorded); the weights must be the same."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.wise_alpha) or self.wise_alpha < 0:
            raise UsageError(
                f"--wise-alpha {self.wise_alpha:g}: 0 for the frozen model, 1 for the customised one, or between"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedRun:
    """A customised model with the checkpoint it was loaded from."""

    encoder: Encoder
    """Encoder with the customised model; its config and fingerprint are those of the frozen model."""
    fingerprint: str
    """Fingerprint of the customised model."""
    config: ReactConfig
    step: int


def load_run(ref: CheckpointRef) -> LoadedRun:
    """Load the frozen model of a run and set its trained parameters.

    Raises:
        UsageError: no such run, checkpoint or average.
        EncoderError: the frozen model cannot be loaded, or has other weights now.
        CorruptMemoryError: the checkpoint is damaged.
    """
    run = Store(ref.run)
    record = read_run(run, "react")
    checkpoint = find_checkpoint(run, ref.step)
    with reading_settings(run):
        settings = dict(record["react"])
        for_inference = {"compile": False, "activation_checkpointing": False}
        config = ReactConfig(**settings | for_inference | {"gated": GatedConfig(**settings["gated"])})
        recorded = EncoderConfig(**record["encoder"])
    frozen = ref.encoder or trusted_encoder(recorded, run.root)
    encoder = Encoder(replace(frozen, precision="fp32"))
    if encoder.fingerprint != record["fingerprint"]:
        raise EncoderError(
            f"{run.root} was trained on other weights than {encoder.config.model} has now "
            f"({record['fingerprint'][:12]} then, {encoder.fingerprint[:12]} now): name the old ones with --model"
        )
    learner = ReactLearner(encoder.model, config, encoder.config.model)
    trained = read_tensors(run, checkpoint, AVERAGE if ref.ema else TRAINABLE)
    initial = {name: own.detach().clone() for name, own in learner.parameters.items()}
    assign(learner.parameters, interpolate(initial, trained, ref.wise_alpha), run.root)
    digest = sha256(pack(learner.parameters))
    encoder.model.requires_grad_(False)
    fingerprint = sha256(f"{encoder.fingerprint} {digest}".encode())
    return LoadedRun(encoder=encoder, fingerprint=fingerprint, config=config, step=checkpoint.step)


def interpolate(initial: Tensors, trained: Tensors, alpha: float) -> Tensors:
    """Interpolate frozen and trained parameters (WiSE-FT); ``alpha`` 1 gives the trained ones, bit for bit."""
    if alpha == 1:
        return trained
    return {
        name: _interpolated(name, initial[name], own.to(initial[name].device), alpha) for name, own in trained.items()
    }


def _interpolated(name: str, initial: Tensor, trained: Tensor, alpha: float) -> Tensor:
    if f".{NAME}." not in name:
        return torch.lerp(initial, trained.to(initial.dtype), alpha)
    if name.rsplit(".", 1)[1] in GATES:
        return torch.atanh((alpha * trained.tanh()).clamp(-1 + 1e-6, 1 - 1e-6))
    return trained
