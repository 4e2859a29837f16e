"""What several commands ask for: where the work is done, and the model. The one door to the cluster's workers."""

from dataclasses import dataclass

from tyro.conf import UseAppendAction

from memory_builder.base.runner import LocalRunner, Runner, RunnerConfig
from memory_builder.model.encoder import EncoderConfig, log_loading, named_encoder
from memory_builder.storage.store import Store

FAILED = 1
"""Exit code of work that failed."""


@dataclass(frozen=True, kw_only=True)
class RunnerOptions(RunnerConfig):
    """Run in this process or on a Ray cluster."""

    def start(self) -> Runner:
        """The runner that these flags name."""
        return start_runner(self)


def start_runner(config: RunnerConfig) -> Runner:
    """A local runner, or one on a Ray cluster."""
    if config.runner == "local":
        return LocalRunner()
    from cluster.runner import RayRunner

    return RayRunner(address=config.address, cpus_per_worker=config.cpus_per_worker)


@dataclass(frozen=True, kw_only=True)
class LinkOptions:
    """What may be read to get the pictures of rows, beside the sources that were embedded from this machine."""

    local_root: UseAppendAction[tuple[str, ...]] = ()
    """Folder (or start of a URL) that a memory from elsewhere may name pictures and shards in; may be repeated."""
    allow_host: UseAppendAction[tuple[str, ...]] = ()
    """Host, or HOST:PORT, that links may lead to although its address is not public; may be repeated."""


@dataclass(frozen=True, kw_only=True)
class MovedModel:
    """The memory's model, for what has to encode."""

    model: str | None = None
    """Where the memory's model is now, if not where it was; weights must be the same."""
    pretrained: str | None = None
    """Pretrained tag or weights file of --model."""

    def encoder(self) -> EncoderConfig | None:
        """None: where it was."""
        return named_encoder(self.model, self.pretrained)


def log_loading_of_run(run: str) -> None:
    """Tell which model a run of train needs; whether that may be loaded, or is there at all, is seen when it is."""
    from trainer.loop.run_config import read_run_config

    record = read_run_config(Store(run))
    if record is not None and isinstance(record.get("encoder"), dict):
        log_loading(str(record["encoder"].get("model")))
