"""``memory-builder submit``: run any command on a cluster. Only this module imports its job client."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Suppress

from memory_builder.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Submit:
    """Run a command on a Ray cluster: memory-builder submit --address http://HEAD:8265 -- embed …"""

    address: str
    """The cluster's job server, such as http://127.0.0.1:8265."""
    follow: bool = True
    """Print the job's output until it ends, and exit with its status."""
    working_dir: Path | None = None
    """Folder to upload for the job, if the cluster lacks files that the job needs."""
    command: Suppress[tuple[str, ...]] = ()

    def run(self) -> int:
        from cluster.submit import submit

        if not self.command:
            raise UsageError("nothing to submit: put the command after --, as in submit --address URL -- info MEMORY")
        working_dir = str(self.working_dir) if self.working_dir else None
        code: int = submit(self.address, list(self.command), follow=self.follow, working_dir=working_dir)
        return code
