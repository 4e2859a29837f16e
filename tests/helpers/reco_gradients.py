"""One worker's share of a RECO step."""

from contextlib import nullcontext

import torch

from trainer.loop.gradient_cache import compute_gradients
from trainer.reco.config import FusionConfig
from trainer.reco.fusion import Reco
from trainer.reco.learner import RecoLearner

K = 3


def gradients(batch, rank, size):
    """One worker's loss and gradients, from its share of a batch."""
    torch.manual_seed(0)
    learner = RecoLearner(Reco(FusionConfig(k=K), 16).double())
    share = len(batch["vectors"]) // size
    ours = {name: rows[rank * share : (rank + 1) * share] for name, rows in batch.items()}
    loss = compute_gradients(learner, ours, None, nullcontext)
    return {"loss": loss} | {name: parameter.grad for name, parameter in learner.parameters.items()}
