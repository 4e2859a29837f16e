"""Faults on a cluster of three nodes with a CPU and a GPU each. Prints what came of them as JSON on stdout."""

import contextlib
import io
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ray._private.state import actors
from ray.cluster_utils import Cluster

import cluster.runner
from helpers.cluster_tasks import Poisoned, Squares
from memory_builder.cli import main as command
from memory_builder.embedding.embed_shard import EmbedTask


@contextlib.contextmanager
def meanwhile(*steps: tuple[Callable[[], bool], Callable[[], None]]) -> Iterator[None]:
    """In a thread, one after another: wait until something is so, then do something."""
    over = threading.Event()
    undone = list(steps)

    def do() -> None:
        while undone and not over.wait(0.05):
            if undone[0][0]():
                undone.pop(0)[1]()

    thread = threading.Thread(target=do)
    thread.start()
    yield
    over.set()
    thread.join()
    if undone:
        raise RuntimeError(f"the run was over before {len(undone)} of {len(steps)} faults could happen")


def latest(marks: Path) -> list[Path]:
    """What was begun, latest first, but for what kills its process anyway."""
    found = [mark for mark in marks.iterdir() if "poison" not in mark.name and mark.stat().st_size]
    return sorted(found, key=lambda mark: mark.stat().st_mtime_ns, reverse=True)


def remove_node_at_work(nodes: Cluster, marks: Path) -> None:
    """Remove the node where something was begun last."""
    pid = int(latest(marks)[0].read_text())
    (node_id,) = {actor["Address"]["NodeID"] for actor in actors().values() if actor["Pid"] == pid}
    (node,) = [node for node in nodes.worker_nodes if node.node_id == node_id]
    nodes.remove_node(node, allow_graceful=False)


def lose_a_node(nodes: Cluster, work: Path) -> dict[str, str]:
    """Its items are done elsewhere. An item that is blamed is given up, so none may be."""
    work.mkdir()
    cluster.runner.MAX_ATTEMPTS = 1
    runner = cluster.runner.RayRunner(address=nodes.address, cpus_per_worker=1)
    with meanwhile((lambda: len(latest(work)) >= 3, lambda: remove_node_at_work(nodes, work))):
        results = list(runner.run(Squares(do={}, seconds=1.0, marks=str(work)), range(15)))
    cluster.runner.MAX_ATTEMPTS = 3
    return {str(item): str(result) for item, result in results}


def embed(address: str, *arguments: object) -> dict[str, Any]:
    """The command, as a user of the cluster runs it."""
    out, err = io.StringIO(), io.StringIO()
    started = time.monotonic()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = command(["embed", *map(str, arguments), "--runner", "ray", "--address", address])
    print(err.getvalue(), file=sys.stderr)
    return {"code": code, "out": out.getvalue(), "err": err.getvalue(), "seconds": time.monotonic() - started}


def embed_under_fire(nodes: Cluster, work: Path, shards: Path, model: str) -> dict[str, Any]:
    """One shard kills every process that reads it; besides, a worker is killed and a node lost."""
    work.mkdir()
    marks = work / "marks"
    marks.mkdir()

    class Runner(cluster.runner.RayRunner):
        def run(self, task: Any, items: Any) -> Any:
            wrapped = Poisoned(task=task, marks=str(marks)) if isinstance(task, EmbedTask) else task
            return super().run(wrapped, items)

    cluster.runner.RayRunner, original = Runner, cluster.runner.RayRunner  # type: ignore[misc]
    with meanwhile(
        (lambda: len(latest(marks)) >= 1, lambda: os.kill(int(latest(marks)[0].read_text()), signal.SIGKILL)),
        (lambda: len(latest(marks)) >= 3, lambda: remove_node_at_work(nodes, marks)),
    ):
        ran = embed(nodes.address, shards, "--memory", work / "memory", "--model", model)
    cluster.runner.RayRunner = original  # type: ignore[misc]
    return ran


def main(work: Path, shards: Path, model: str) -> None:
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(3):
            nodes.add_node(num_cpus=1, num_gpus=1)
        squares = lose_a_node(nodes, work / "squares")
        nodes.add_node(num_cpus=1, num_gpus=1)
        fire = embed_under_fire(nodes, work / "fire", shards, model)
        broken = embed(nodes.address, shards, "--memory", work / "broken", "--model", f"local-dir:{work}/nowhere")
    finally:
        cluster.runner.ray.shutdown()
        nodes.shutdown()
    print(json.dumps({"squares": squares, "fire": fire, "broken": broken}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
