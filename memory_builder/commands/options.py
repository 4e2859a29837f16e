"""Options that several commands share: runner, links and model. Only this module imports the cluster's workers."""

from dataclasses import dataclass

from tyro.conf import UseAppendAction

from memory_builder.base.runner import LocalRunner, Runner, RunnerConfig
from memory_builder.model.encoder import EncoderConfig, log_loading, named_encoder
from memory_builder.storage.store import Store

FAILED = 1
"""Exit code of failed work."""


@dataclass(frozen=True, kw_only=True)
class RunnerOptions(RunnerConfig):
    """Local process or Ray cluster."""

    def start(self) -> Runner:
        """Return the runner of these flags."""
        return start_runner(self)


def start_runner(config: RunnerConfig) -> Runner:
    """Return a local runner, or one on a Ray cluster."""
    if config.runner == "local":
        return LocalRunner()
    from cluster.runner import RayRunner

    return RayRunner(address=config.address, cpus_per_worker=config.cpus_per_worker)


@dataclass(frozen=True, kw_only=True)
class LinkOptions:
    """Links that pictures of rows may be read from, besides the sources that this user embedded on this machine."""

    local_root: UseAppendAction[tuple[str, ...]] = ()
    """Folder (or URL prefix) from which a memory built elsewhere may read pictures and shards; may be repeated."""
    allow_host: UseAppendAction[tuple[str, ...]] = ()
    """Host, or HOST:PORT, with a non-public address that links may lead to; may be repeated."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Model that encodes queries."""

    model: str | None = None
    """open_clip model name, or local-dir:FOLDER (default: the memory's model as recorded). Weights must be the same."""
    pretrained: str | None = None
    """Pretrained tag or weights file of --model."""

    def encoder(self) -> EncoderConfig | None:
        """Return the encoder of --model; None for the recorded one."""
        return named_encoder(self.model, self.pretrained)


def log_loading_of_run(run: str) -> None:
    """Log which model a run of train needs; errors of an absent or unsafe model come when it is loaded."""
    from trainer.loop.run_config import read_run_config

    record = read_run_config(Store(run))
    if record is not None and isinstance(record.get("encoder"), dict):
        log_loading(str(record["encoder"].get("model")))
