"""A run on three nodes, one of which is lost half-way. Prints the results as JSON, and nothing else on stdout."""

import json
import sys
import threading
import time
from pathlib import Path

from cluster_tasks import Squares
from ray.cluster_utils import Cluster

import cluster.runner


def lose(nodes: Cluster, node: object, marks: Path) -> None:
    while len(list(marks.iterdir())) < 3:
        time.sleep(0.1)
    nodes.remove_node(node, allow_graceful=False)


def main(marks: Path) -> None:
    cluster.runner.MAX_ATTEMPTS = 1  # an item that is blamed is given up
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        doomed = [nodes.add_node(num_cpus=1) for _ in range(3)][1]
        killer = threading.Thread(target=lose, args=(nodes, doomed, marks))
        killer.start()
        runner = cluster.runner.RayRunner(address=nodes.address, cpus_per_worker=1)
        results = list(runner.run(Squares(do={}, seconds=1.0, marks=str(marks)), range(15)))
        killer.join()
    finally:
        cluster.runner.ray.shutdown()
        nodes.shutdown()
    print(json.dumps({item: str(result) for item, result in results}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
