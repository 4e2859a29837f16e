"""Training jobs that fail on workers of a cluster, which import them by this name."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from memory_builder.errors import LossError
from memory_builder.storage.store import Store
from trainer.loop.distributed import world
from trainer.react.job import ReactJob


def killing(report, mark):
    """A report of figures that kills the second worker after the first checkpoint, unless a file says that it did."""

    def report_and_die(figures):
        report(figures)
        if world().rank == 1 and not os.path.exists(mark):
            Path(mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)

    return report_and_die


@dataclass(frozen=True, kw_only=True, slots=True)
class DyingReact(ReactJob):
    """One of its workers is killed once."""

    mark: str

    def work(self, report):
        ReactJob.work(self, killing(report, self.mark))


@dataclass(frozen=True, kw_only=True, slots=True)
class Elsewhere:
    """A job whose workers write where the driver does not see it."""

    out: str

    def check_unfinished(self):
        return True

    def work(self, _):
        Store("run").put("config.json", b"{}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Failing:
    """A job that every new try fails at, and that notes each."""

    out: str
    tries: str

    def check_unfinished(self):
        return True

    def work(self, _):
        with open(self.tries, "a") as file:
            file.write(f"{world().rank}{os.environ['CUDA_VISIBLE_DEVICES']} ")
        raise LossError("the loss of step 1 is nan")
