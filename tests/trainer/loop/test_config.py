"""Values that cannot be meant are refused by their flag."""

from dataclasses import asdict

import pytest

from memory_builder.errors import UsageError
from trainer.loop.config import LoopConfig, OptimizerConfig, TrainRunnerConfig
from trainer.react.config import DataConfig, GatedConfig, ReactConfig
from trainer.reco.config import FusionConfig, NeighbourConfig

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("kind", "name", "values"),
    [
        (OptimizerConfig, "learning_rate", (0, -1e-3, INF, NAN)),
        (OptimizerConfig, "weight_decay", (-0.1, INF, NAN)),
        (OptimizerConfig, "beta1", (-0.1, 1, 1.5, NAN)),
        (OptimizerConfig, "beta2", (-0.1, 1, 1.5, NAN)),
        (OptimizerConfig, "eps", (0, -1e-8, INF, NAN)),
        (OptimizerConfig, "warmup", (-0.1, 1, NAN)),
        (OptimizerConfig, "max_norm", (0, -1, INF, NAN)),
        (OptimizerConfig, "ema", (0, 1, NAN)),
        (LoopConfig, "seed", (-1, 1 << 63)),
        (LoopConfig, "epochs", (0,)),
        (LoopConfig, "max_steps", (0,)),
        (LoopConfig, "micro_batch", (0,)),
        (GatedConfig, "last_k", (-1,)),
        (GatedConfig, "bottleneck", (0, -8)),
        (GatedConfig, "mlp_ratio", (0, INF, NAN)),
        (DataConfig, "readers", (0,)),
        (FusionConfig, "mlp_ratio", (0, INF, NAN)),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused_by_its_flag(kind, name, values):
    for value in values:
        with pytest.raises(UsageError, match=rf"--{name.replace('_', '-')} {value}"):
            kind(**{name: value})


def test_workers_are_at_least_one():
    with pytest.raises(UsageError, match="--workers 0: at least 1"):
        TrainRunnerConfig(runner="ray", workers=0)
    with pytest.raises(UsageError, match="--max-failures -1: at least 0"):
        TrainRunnerConfig(runner="ray", max_failures=-1)


@pytest.mark.parametrize(
    ("kind", "told", "message"),
    [
        (ReactConfig, {"mode": "locked-text", "gated": GatedConfig(last_k=2)}, "--mode locked-text has none"),
        (ReactConfig, {"mode": "full", "gated": GatedConfig(bottleneck=8)}, "--mode full has none"),
        (FusionConfig, {"fusion": "mean", "rank_embeddings": True}, "--fusion mean has none"),
        (FusionConfig, {"fusion": "mean", "heads": 4}, "--fusion mean has none"),
        (NeighbourConfig, {"apart": "site", "exclude": False}, "--apart site drops rows"),
    ],
)
def test_a_setting_without_effect_is_refused(kind, told, message):
    with pytest.raises(UsageError, match=message):
        kind(**told)


def test_the_ends_of_what_can_be_meant_are_taken():
    optimizer = {"weight_decay": 0, "beta1": 0, "beta2": 0, "warmup": 0, "max_norm": 1e-9}
    for kind, told in (
        (OptimizerConfig, optimizer),
        (LoopConfig, {"seed": (1 << 63) - 1}),
        (GatedConfig, {"last_k": 0, "bottleneck": 1}),
    ):
        assert asdict(kind(**told)).items() >= told.items()
