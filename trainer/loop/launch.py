"""Where a training job is done: in this process, or on the workers of a Ray cluster. The only file here that knows Ray.

``TorchTrainer`` starts the workers, joins them in a process group and starts them anew when one dies; order, resume and
checkpoints are the job's own, in the run's folder, which is Ray's ``storage_path/name``.
"""

import json
import os
import pickle
import uuid
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from memory_builder.base.progress import say
from memory_builder.errors import MemoryBuilderError, StorageError, StorageFullError, UsageError, WorkerError
from memory_builder.storage.locks import turn
from memory_builder.storage.store import Store
from trainer.loop.config import Where

if TYPE_CHECKING:
    from trainer.loop.loop import Report


LOCK = "train.lock"
PATIENCE_S = 6 * 3600
"""How long workers wait for one that reads a subset or embeds its part of it; a dead one is noticed at once."""
TRIES_TO_START = 30
"""Of a minute each: nodes may be added on demand, or other work may end."""


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


def make_absolute(of: object, *places: str) -> None:
    """Name a frozen dataclass's files and folders as any process finds them: a worker starts in a folder of its own."""
    for name in places:
        if (place := getattr(of, name)) is not None:
            object.__setattr__(of, name, Store(place).root)


def run_job(job: Job, where: Where) -> bool:
    """Do what is left of a job; whether there was anything. Of two in one folder, the second waits and says for whom.

    Raises:
        MemoryBuilderError: whatever the job raises; WorkerError when workers keep dying.
    """
    with turn(Store(job.out), LOCK) as held:
        if not job.settle():
            return False
        if where.runner == "local":
            job.work(lambda _: held.check())
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
    run, failure = Store(job.out), f"failures/{uuid.uuid4().hex}"
    storage, _, name = run.root.rpartition("/")
    use_gpu = ray.cluster_resources().get("GPU", 0) >= 1 if where.gpu is None else where.gpu
    trainer = TorchTrainer(
        _work,
        # The job is opened by the workers alone: it brings torch along.
        train_loop_config={"job": pickle.dumps(job), "failure": failure},
        torch_config=TorchConfig(timeout_s=PATIENCE_S),
        scaling_config=ray.train.ScalingConfig(
            num_workers=where.workers or 1, use_gpu=use_gpu, resources_per_worker=_reserved(where, use_gpu)
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=storage,
            failure_config=ray.train.FailureConfig(
                max_failures=where.max_failures, controller_failure_limit=TRIES_TO_START
            ),
            # A worker that reserves no GPU would see all of them.
            worker_runtime_env={} if use_gpu else {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}},
        ),
    )
    failed = None
    say(f"training on the cluster: {run.root}/metrics.jsonl tells how far it is")
    try:
        trainer.fit()
    except TrainingFailedError as error:
        failed = error
    told = _read_failure(run, failure)
    if told is not None:
        run.remove(failure)
        if failed is not None or _is_final(told):
            raise told from failed
    if failed is not None:
        raise WorkerError(f"training failed on its workers: {_last_line(failed)}") from failed
    _refuse_unfinished(run)


def _refuse_unfinished(run: Store) -> None:
    """What workers wrote, or failed with, may lie where they alone see it."""
    from trainer.loop.checkpoint import last_state

    state = last_state(run)
    if state is None or state.step < state.n_steps:
        raise WorkerError(
            f"the workers ended, and {run.root} lacks the last checkpoint: --out must name a folder that this machine "
            "and all nodes of the cluster share"
        )
    say(f"{run.root}: {state.step:,} steps, loss {state.loss:.4f}")


def _reserved(where: Where, use_gpu: bool) -> dict[str, float]:
    """What each worker reserves.

    Raises:
        UsageError: all of them never fit into this machine; a cluster that was joined may grow, and is waited for.
    """
    from cluster.runtime import live_nodes, plan_workers

    plan, n_fitting = plan_workers(
        live_nodes(), where.workers or 1, use_gpu=use_gpu, cpus_per_worker=where.cpus_per_worker
    )
    if n_fitting < plan.size:
        what = f"{plan.size} workers of {plan.num_cpus} CPUs and {plan.num_gpus} GPUs"
        if where.address in (None, "local") and "RAY_ADDRESS" not in os.environ:
            raise UsageError(
                f"--workers {plan.size}: this machine has room for {n_fitting} of {what}: ask for fewer, for fewer "
                "--cpus-per-worker, or name a cluster with --address"
            )
        say(f"the cluster has room for {n_fitting} of {what}: waiting for more, up to {TRIES_TO_START} minutes")
    return {"CPU": plan.num_cpus, "GPU": plan.num_gpus}


def _work(config: dict[str, Any]) -> None:
    """On a worker. ``report`` is a barrier: all come here equally often."""
    import ray.train

    job: Job = pickle.loads(config["job"])
    run = Store(job.out)
    told = _read_failure(run, config["failure"])
    if told is not None and _is_final(told):
        return  # Ray starts workers again whatever they raised: what no new try mends is for the driver to tell
    try:
        job.work(ray.train.report)
    except MemoryBuilderError as error:
        with suppress(StorageError):
            told_error = {"kind": type(error).__name__, "message": str(error)}
            run.put(config["failure"], json.dumps(told_error).encode())
        raise


def _read_failure(run: Store, path: str) -> MemoryBuilderError | None:
    """What a worker raised, if it is one of ours."""
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
    """Whether it would be raised again by workers that start anew; storage that fails may be back."""
    return isinstance(error, StorageFullError) or not isinstance(error, StorageError)


def _last_line(error: Any) -> str:
    """Of what the first worker to fail said, or of what Ray says."""
    failures = list(getattr(error, "worker_failures", {}).values())
    lines = str(failures[0] if failures else error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
