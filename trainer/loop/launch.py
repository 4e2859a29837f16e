"""Running a training job in this process or on Ray workers. The only file of the trainer that imports Ray.

``TorchTrainer`` starts the workers, joins them in a process group and restarts them when one dies. Sampling, resuming
and checkpoints are the job's own, in the run's folder, which is Ray's ``storage_path/name``.
"""

import json
import os
import pickle
import uuid
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from memory_builder.base.log import logger
from memory_builder.errors import MemoryBuilderError, StorageError, StorageFullError, UsageError, WorkerError
from memory_builder.storage.locks import hold_lock
from memory_builder.storage.store import Store
from trainer.loop.config import TrainRunnerConfig

if TYPE_CHECKING:
    from trainer.loop.loop import Report


LOCK = "train.lock"
PATIENCE_S = 6 * 3600
"""Timeout of a barrier, while other workers scan or embed their part; a dead worker is noticed at once."""
TRIES_TO_START = 30
"""Attempts of a minute each to place the workers: nodes may be added on demand, or other work may end."""


class Job(Protocol):
    """A training with its settings; picklable."""

    @property
    def out(self) -> str:
        """Folder of the run."""
        ...

    def check_unfinished(self) -> bool:
        """Refuse settings that do not fit, before any worker starts; False if the run has taken its last step."""
        ...

    def work(self, report: "Report") -> None:
        """Train on one worker, in a process group if there are several, from the newest checkpoint on."""
        ...


def make_absolute(owner: object, *fields: str) -> None:
    """Make paths in fields of a frozen dataclass absolute: a worker starts in a folder of its own."""
    for name in fields:
        if (path := getattr(owner, name)) is not None:
            object.__setattr__(owner, name, Store(path).root)


def run_job(job: Job, runner: TrainRunnerConfig) -> bool:
    """Train to the last step; False if the run had taken it. A second job in the same folder waits for the first.

    Raises:
        MemoryBuilderError: errors of the job; WorkerError if workers keep dying.
    """
    with hold_lock(Store(job.out), LOCK) as held:
        if not job.check_unfinished():
            return False
        if runner.runner == "local":
            job.work(lambda _: held.check())
        else:
            _run_on_ray(job, runner)
    return True


def _run_on_ray(job: Job, runner: TrainRunnerConfig) -> None:
    import ray
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    from cluster.runtime import connect

    connect(runner.address)
    run, failure = Store(job.out), f"failures/{uuid.uuid4().hex}"
    storage, _, name = run.root.rpartition("/")
    use_gpu = ray.cluster_resources().get("GPU", 0) >= 1 if runner.gpu is None else runner.gpu
    trainer = TorchTrainer(
        _work,
        # Pickled here and unpickled on the workers alone, as that imports torch.
        train_loop_config={"job": pickle.dumps(job), "failure": failure},
        torch_config=TorchConfig(timeout_s=PATIENCE_S),
        scaling_config=ray.train.ScalingConfig(
            num_workers=runner.workers or 1, use_gpu=use_gpu, resources_per_worker=_resources(runner, use_gpu)
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=storage,
            failure_config=ray.train.FailureConfig(
                max_failures=runner.max_failures, controller_failure_limit=TRIES_TO_START
            ),
            # A worker that reserves no GPU would see all of them.
            worker_runtime_env={} if use_gpu else {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}},
        ),
    )
    failed = None
    logger.info(f"training on the cluster: {run.root}/metrics.jsonl shows the progress")
    try:
        trainer.fit()
    except TrainingFailedError as error:
        failed = error
    worker_error = _read_failure(run, failure)
    if worker_error is not None:
        run.remove(failure)
        if failed is not None or _is_final(worker_error):
            raise worker_error from failed
    if failed is not None:
        raise WorkerError(f"training failed on its workers: {_last_line(failed)}") from failed
    _refuse_unfinished(run)


def _refuse_unfinished(run: Store) -> None:
    """Refuse a run without its last checkpoint: the workers may have written it to their own disks."""
    from trainer.loop.checkpoint import newest_checkpoint

    record = newest_checkpoint(run)
    if record is None or record.step < record.n_steps:
        raise WorkerError(
            f"the workers ended, and {run.root} lacks the last checkpoint: --out must name a folder that this machine "
            "and all nodes of the cluster share"
        )
    logger.info(f"{run.root}: {record.step:,} steps, loss {record.loss:.4f}")


def _resources(runner: TrainRunnerConfig, use_gpu: bool) -> dict[str, float]:
    """CPUs and GPUs of each worker.

    Raises:
        UsageError: the workers do not fit into this machine. A cluster that was joined may grow, and is waited for.
    """
    from cluster.runtime import live_nodes, plan_workers

    plan, n_fitting = plan_workers(
        live_nodes(), runner.workers or 1, use_gpu=use_gpu, cpus_per_worker=runner.cpus_per_worker
    )
    if n_fitting < plan.size:
        what = f"{plan.size} workers of {plan.num_cpus} CPUs and {plan.num_gpus} GPUs"
        if runner.address in (None, "local") and "RAY_ADDRESS" not in os.environ:
            raise UsageError(
                f"--workers {plan.size}: this machine has room for {n_fitting} of {what}: ask for fewer, for fewer "
                "--cpus-per-worker, or name a cluster with --address"
            )
        logger.info(f"the cluster has room for {n_fitting} of {what}: waiting for more, up to {TRIES_TO_START} minutes")
    return {"CPU": plan.num_cpus, "GPU": plan.num_gpus}


def _work(config: dict[str, Any]) -> None:
    """Train on a Ray worker. ``ray.train.report`` is a barrier, which every worker calls equally often."""
    import ray.train

    job: Job = pickle.loads(config["job"])
    run = Store(job.out)
    earlier_error = _read_failure(run, config["failure"])
    if earlier_error is not None and _is_final(earlier_error):
        return  # Ray restarts workers after any exception: one that would come again is raised by the driver
    try:
        job.work(ray.train.report)
    except MemoryBuilderError as error:
        with suppress(StorageError):
            failure = {"kind": type(error).__name__, "message": str(error)}
            run.put(config["failure"], json.dumps(failure).encode())
        raise


def _read_failure(run: Store, path: str) -> MemoryBuilderError | None:
    """The error of a worker, if it raised one of this project's."""
    record = run.read_sound_json(path)
    if record is None:
        return None
    kinds = {kind.__name__: kind for kind in _kinds(MemoryBuilderError)}
    kind = kinds.get(str(record.get("kind")), MemoryBuilderError)
    return kind(record.get("message"))


def _kinds(base: type[MemoryBuilderError]) -> Iterator[type[MemoryBuilderError]]:
    yield base
    for kind in base.__subclasses__():
        yield from _kinds(kind)


def _is_final(error: MemoryBuilderError) -> bool:
    """Whether restarted workers would raise it again; failed storage may recover."""
    return isinstance(error, StorageFullError) or not isinstance(error, StorageError)


def _last_line(error: Any) -> str:
    """The last line of the first failed worker's error, or of Ray's."""
    failures = list(getattr(error, "worker_failures", {}).values())
    lines = str(failures[0] if failures else error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
