"""Where a training job is done: in this process, or on the workers of a Ray cluster. The only file here that knows Ray.

``TorchTrainer`` starts the workers, joins them in a process group and starts them anew when one dies; order, resume and
checkpoints are the job's own, in the run's folder, which is Ray's ``storage_path/name``.
"""

import pickle
from typing import TYPE_CHECKING, Any, Protocol

from memory_builder.errors import MemoryBuilderError, WorkerError
from memory_builder.storage import Store
from trainer.settings import Where

if TYPE_CHECKING:
    from trainer.loop import Report


PATIENCE_S = 6 * 3600
"""How long workers wait for one that reads a subset or embeds its part of it; a dead one is noticed at once."""


class Job(Protocol):
    """Training to be done; picklable."""

    @property
    def out(self) -> str:
        """The run's folder."""
        ...

    def settle(self) -> bool:
        """Called once, before any worker: refuse what cannot be; whether there is anything left to do."""
        ...

    def work(self, report: "Report") -> None:
        """Called on every worker, in a process group if there are several; goes on where the run stopped."""
        ...


def run_job(job: Job, where: Where) -> bool:
    """Do what is left of a job; whether there was anything.

    Raises:
        MemoryBuilderError: whatever the job raises; WorkerError when workers keep dying.
    """
    if not job.settle():
        return False
    if where.runner == "local":
        job.work(lambda _: None)
    else:
        _run_on_ray(job, where)
    return True


def _run_on_ray(job: Job, where: Where) -> None:
    import ray
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    from cluster.runtime import connect

    connect(where.address)
    storage, _, name = Store(job.out).root.rpartition("/")
    use_gpu = ray.cluster_resources().get("GPU", 0) >= 1 if where.gpu is None else where.gpu
    trainer = TorchTrainer(
        _work,
        train_loop_config={"job": pickle.dumps(job)},  # opened by the workers alone: it brings torch along
        torch_config=TorchConfig(timeout_s=PATIENCE_S),
        scaling_config=ray.train.ScalingConfig(
            num_workers=where.workers or 1,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": where.cpus_per_worker or 1, "GPU": int(use_gpu)},
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=storage,
            failure_config=ray.train.FailureConfig(max_failures=where.max_failures),
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise _reason(error) from error


def _work(config: dict[str, Any]) -> None:
    """On a worker. ``report`` is a barrier: all come here equally often."""
    import ray.train

    job: Job = pickle.loads(config["job"])
    job.work(ray.train.report)


def _reason(error: Any) -> Exception:
    """What the workers themselves raised, if it is one of ours."""
    failures = list(getattr(error, "worker_failures", {}).values())
    for failure in failures:
        cause = getattr(failure, "cause", failure)
        for found in (failure, cause, getattr(failure, "__cause__", None)):
            if isinstance(found, MemoryBuilderError):
                return found
    first = str(failures[0] if failures else error).strip().splitlines()
    return WorkerError(f"training failed on its workers: {first[-1] if first else type(error).__name__}")
