"""What several commands ask for: where the work is done, and the model. The one door to the cluster's workers."""

from dataclasses import dataclass
from typing import Literal

from tyro.conf import UseAppendAction

from memory_builder.base.runner import LocalRunner, Runner
from memory_builder.errors import UsageError
from memory_builder.model.encoder import EncoderConfig, named_encoder, say_loading
from memory_builder.storage.store import Store

FAILED = 1
"""Exit code of work that failed."""


@dataclass(frozen=True, kw_only=True)
class RunnerOptions:
    """Where the work is done."""

    runner: Literal["local", "ray"] = "local"
    """local: in this process. ray: on the actors of a Ray cluster."""
    address: str | None = None
    """Ray cluster to join, as for ray.init; without one that of RAY_ADDRESS, else one is started on this machine."""
    cpus_per_worker: int | None = None
    """CPUs, and so threads, of each worker on Ray."""

    def start(self) -> Runner:
        """The runner itself."""
        if self.runner == "local":
            if self.address is not None or self.cpus_per_worker is not None:
                raise UsageError("--address and --cpus-per-worker need --runner ray")
            return LocalRunner()
        from cluster.runner import RayRunner

        return RayRunner(address=self.address, cpus_per_worker=self.cpus_per_worker)


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


def say_loading_of_run(run: str) -> None:
    """Tell which model a run of train needs; whether that may be loaded, or is there at all, is seen when it is."""
    from trainer.loop.run_config import read_record

    record = read_record(Store(run))
    if record is not None and isinstance(record.get("encoder"), dict):
        say_loading(str(record["encoder"].get("model")))
