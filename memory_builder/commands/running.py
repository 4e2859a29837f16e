"""Where the work of a command is done. The one door to the cluster's workers."""

from dataclasses import dataclass
from typing import Literal

from memory_builder.errors import UsageError
from memory_builder.runner import LocalRunner, Runner

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
