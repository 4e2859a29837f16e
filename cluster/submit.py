"""Submit a memory-builder command as a job to a running Ray cluster.

A job survives the client but not the cluster's head; the same command, submitted again, resumes.
"""

import asyncio
import os
import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from ray.job_submission import JobStatus, JobSubmissionClient

from cluster.runtime import check_port
from memory_builder.errors import ConnectionFailedError, UsageError, WorkerError
from memory_builder.storage.records import content_hash

STAGES = frozenset(
    {
        *("embed", "import", "index", "append", "compact", "verify", "merge", "export", "retrieve"),
        *("train react", "train reco"),
    }
)
"""Commands with ``--runner``."""
NOT_UPLOADED = (".git", ".venv", "venv", "data", "__pycache__", "*.tar", "*.npy", "*.faiss")
MAX_FAILURES = 20
POLL_S = 1.0
NO_AGENT = "No available agent"
AGENTS_START_S = 60.0
"""Longest wait for the job agents of a new cluster."""
INTERRUPTED = 130


def submit(
    address: str,
    command: Sequence[str],
    *,
    follow: bool = True,
    working_dir: str | None = None,
    submission_id: str | None = None,
) -> int:
    """Submit ``memory-builder COMMAND`` and return its exit code; 0 at once without ``follow``.

    While following, the job's output goes to stdout as it comes; Ctrl-C leaves the job running and returns 130.

    Args:
        address: URL of the cluster's job server, http://HEAD:8265.
        command: The arguments of memory-builder. A stage without ``--runner`` is run with ``--runner ray``.
        working_dir: Folder to upload and run in; without it the cluster must have the package installed.
        submission_id: Name of the job (default: stage, hash of the command, attempt).

    Raises:
        ConnectionFailedError: no job server answers at this address.
        UsageError: the cluster refuses the job.
        WorkerError: the job server no longer answers.
    """
    client = _client(address)
    arguments = on_cluster(command)
    runtime_env: dict[str, Any] = {}
    if working_dir is not None:
        if not Path(working_dir).is_dir():
            raise UsageError(f"--working-dir {working_dir}: no such folder")
        runtime_env = {"working_dir": working_dir, "excludes": list(NOT_UPLOADED)}
    job = submission_id or next_id(arguments, (details.submission_id or "" for details in client.list_jobs()))
    entrypoint = shlex.join(["python", "-m", "memory_builder.cli", *arguments])
    _submit_when_agents_run(client, address, entrypoint=entrypoint, submission_id=job, runtime_env=runtime_env)
    how = f"follow: ray job logs --address {address} --follow {job}\nstop:   ray job stop --address {address} {job}"
    print(f"job {job}", file=sys.stderr, flush=True)
    if not follow:
        print(how, file=sys.stderr)
        return 0
    try:
        return _exit_code(client, job, address)
    except KeyboardInterrupt:
        print(f"\nthe job continues\n{how}", file=sys.stderr)
        return INTERRUPTED


def _submit_when_agents_run(client: Any, address: str, **job: Any) -> None:
    """Submit a job; retry while a new cluster has no agent to run it yet.

    Raises:
        UsageError: the cluster refuses the job.
    """
    deadline = time.monotonic() + AGENTS_START_S
    while True:
        try:
            client.submit_job(**job)
        except (RuntimeError, ValueError) as error:
            if NO_AGENT not in str(error) or time.monotonic() > deadline:
                reason = str(error).strip()[-500:]
                raise UsageError(f"the cluster at {address} refused job {job['submission_id']}: {reason}") from error
            time.sleep(POLL_S)
        else:
            return


def on_cluster(command: Sequence[str]) -> list[str]:
    """Return the arguments of the job: a stage runs on the cluster of its job."""
    arguments = list(command[1:] if command and command[0] == "memory-builder" else command)
    flags = {argument.partition("=")[0] for argument in arguments}
    stages = {" ".join(arguments[:words]) for words in (1, 2)}
    if stages & STAGES and not flags & {"--runner", "--address"}:
        arguments += ["--runner", "ray", "--address", "auto"]
    return arguments


def next_id(arguments: Sequence[str], taken: Iterable[str]) -> str:
    """``STAGE-HASH-ATTEMPT``: a cluster accepts each id once, and a command may be submitted again."""
    name = f"{arguments[0] if arguments else 'help'}-{content_hash({'command': list(arguments)})[:8]}".lstrip("-")
    attempts = [job.removeprefix(f"{name}-") for job in taken if job.startswith(f"{name}-")]
    return f"{name}-{max((int(attempt) for attempt in attempts if attempt.isdecimal()), default=0) + 1}"


def _client(address: str) -> Any:
    url = urlsplit(address)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise UsageError(f"--address {address}: expected the URL of the cluster's job server, http://HEAD:8265")
    for variable in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        if os.environ.get(variable, address) != address:
            raise UsageError(f"{variable}={os.environ[variable]} would override --address {address}: unset it")
    try:
        check_port(url.hostname, url.port or (443 if url.scheme == "https" else 80))
        return JobSubmissionClient(address)
    except (OSError, RuntimeError) as error:
        raise ConnectionFailedError(
            f"no Ray job server answers at --address {address}: {error}. It is the dashboard of the head node, "
            "port 8265 unless set otherwise; from outside, forward that port first"
        ) from None


def _exit_code(client: Any, job: str, address: str) -> int:
    """Print the job's output until it ends; returns its exit code."""
    shown = failures = 0
    while failures < MAX_FAILURES:
        shown = asyncio.run(_follow(client, job, shown))
        try:
            details = client.get_job_info(job)
        except (OSError, RuntimeError):
            failures += 1
        else:
            failures = 0
            if details.status.is_terminal():
                return _ended(job, details)
        time.sleep(POLL_S)
    raise WorkerError(
        f"lost the job server at {address} while following job {job}, which may continue: "
        f"ray job logs --address {address} --follow {job}"
    )


def _ended(job: str, details: Any) -> int:
    if details.status == JobStatus.SUCCEEDED:
        return 0
    if details.driver_exit_code is None:
        print(f"job {job} {details.status.value.lower()}: {details.message}", file=sys.stderr)
    return 2 if details.driver_exit_code == 2 else 1


async def _follow(client: Any, job: str, shown: int) -> int:
    """Print the job's log beyond the first ``shown`` characters, until it ends or the connection does.

    Returns:
        Number of characters printed so far: each connection gets the log from its start.
    """
    length = 0
    try:
        async for text in client.tail_job_logs(job):
            print(text[max(0, shown - length) :], end="", flush=True)
            length += len(text)
    except (OSError, RuntimeError, aiohttp.ClientError):
        pass  # proxies and port forwards cut long connections; the caller checks the job
    return max(length, shown)
