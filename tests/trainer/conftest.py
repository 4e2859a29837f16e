"""What the trainer's tests share: a tiny model of open_clip's own kind, and a small subset."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from helpers.tiny_runs import bundled_pairs, react_config, write_subset, write_tiny_model
from memory_builder.base.runner import LocalRunner
from memory_builder.embedding.config import EmbedConfig
from memory_builder.embedding.driver import embed
from memory_builder.indexing.config import IndexConfig
from memory_builder.indexing.driver import index
from memory_builder.model.encoder import Encoder, EncoderConfig
from trainer.loop.config import LoopConfig, OptimizerConfig
from trainer.react.config import DataConfig
from trainer.react.job import ReactJob


@pytest.fixture(scope="module")
def one_thread():
    """These models are too small to share: threads that wait for each other take many times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # what a job gives itself, and a process that is started here
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def small_model(model_dir) -> Any:
    """The bundled model, to be changed."""
    return Encoder(EncoderConfig(model=f"local-dir:{model_dir}")).model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> str:
    """A model with random weights, as ``--model`` takes it."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="session")
def icons() -> list[dict[str, bytes]]:
    """Forty bundled pairs; four in a row belong to one class."""
    return bundled_pairs()


@pytest.fixture(scope="session")
def subset(tmp_path_factory, icons) -> Path:
    """Those pairs in two tars."""
    return write_subset(tmp_path_factory.mktemp("subset") / "subset", icons)


@pytest.fixture(scope="session")
def job(tiny, subset, tmp_path_factory) -> Callable[..., ReactJob]:
    """Six steps of eight pairs with the tiny model; every argument replaces a setting of that name."""
    cache = tmp_path_factory.mktemp("cache")

    def make(out: Path, *, react: dict[str, Any] | None = None, **told: Any) -> ReactJob:
        optimizer = {name: told.pop(name) for name in ("learning_rate", "ema", "warmup") if name in told}
        data = {name: told.pop(name) for name in ("augmentation", "positives", "cache_dtype") if name in told}
        job = {name: told.pop(name) for name in ("start_from", "any_encoder", "encoder", "subset") if name in told}
        loop = {"batch_size": 8, "max_steps": 6, "checkpoint_every": 2, "log_every": 1} | told
        return ReactJob(
            **{"subset": str(subset), "encoder": EncoderConfig(model=tiny), "cache": str(cache)} | job,
            out=str(out),
            react=react_config(**(react or {})),
            data=DataConfig(**{"augmentation": "none", "readers": 2} | data),
            loop=LoopConfig(**loop, optimizer=OptimizerConfig(**{"warmup": 0.0} | optimizer)),
        )

    return make


@pytest.fixture(scope="session")
def tiny_encoder(tiny) -> Callable[[], Encoder]:
    """The tiny model, loaded anew each time."""
    assert open_clip.get_tokenizer(tiny).context_length == 16
    return lambda: Encoder(EncoderConfig(model=tiny, precision="fp32"))


@pytest.fixture(scope="session")
def memory(tmp_path_factory, tiny, subset) -> str:
    """Forty bundled pairs embedded with the tiny model, both sides indexed."""
    root = str(tmp_path_factory.mktemp("reco") / "memory")
    embed([str(subset)], root, encoder=EncoderConfig(model=tiny), config=EmbedConfig(), runner=LocalRunner())
    index(root, keys=("image", "text"), config=IndexConfig(), runner=LocalRunner())
    return root
