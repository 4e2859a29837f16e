import pytest

from cluster.runtime import PoolPlan, connect, plan_pool, plan_workers
from memory_builder.errors import ConnectionFailedError, UsageError

CPU_NODE, GPU_NODE, BARE_HEAD = {"CPU": 32.0}, {"CPU": 64.0, "GPU": 8.0}, {"CPU": 0.0}


@pytest.mark.parametrize(
    ("nodes", "n_items", "asked", "plan"),
    [
        pytest.param([GPU_NODE, CPU_NODE], 100, {"wants_gpu": True}, (8, 8, 1), id="one worker a gpu, cpus divided"),
        pytest.param([GPU_NODE], 3, {"wants_gpu": True}, (3, 8, 1), id="no more workers than items"),
        pytest.param([{"CPU": 2.0, "GPU": 4.0}], 9, {"wants_gpu": True}, (4, 0, 1), id="more gpus than cpus"),
        pytest.param([CPU_NODE], 9, {"wants_gpu": True}, (4, 8, 0), id="gpu wanted, none there"),
        pytest.param([GPU_NODE], 100, {"wants_gpu": False}, (8, 8, 0), id="cpu work on a gpu node"),
        pytest.param([CPU_NODE, CPU_NODE], 100, {"wants_gpu": False}, (8, 8, 0), id="several a node"),
        pytest.param([CPU_NODE], 1, {"wants_gpu": False}, (1, 32, 0), id="a single item has the node"),
        pytest.param([CPU_NODE], 2, {"wants_gpu": False}, (2, 16, 0), id="two halve it"),
        pytest.param([{"CPU": 2.0}], 9, {"wants_gpu": False}, (1, 2, 0), id="small machine"),
        pytest.param([{"CPU": 2.0}], 9, {"wants_gpu": False, "cpus_per_worker": 1}, (2, 1, 0), id="asked"),
        pytest.param([BARE_HEAD], 9, {"wants_gpu": False}, (1, 1, 0), id="no node yet"),
        pytest.param(
            [BARE_HEAD], 9, {"wants_gpu": False, "cpus_per_worker": 4, "n_workers": 5}, (5, 4, 0), id="nodes to come"
        ),
    ],
)
def test_plan(nodes, n_items, asked, plan):
    size, num_cpus, num_gpus = plan
    assert plan_pool(nodes, n_items, **asked) == PoolPlan(size=size, num_cpus=num_cpus, num_gpus=num_gpus)


@pytest.mark.parametrize(
    ("nodes", "n_workers", "asked", "plan", "n_fitting"),
    [
        pytest.param([GPU_NODE, CPU_NODE], 8, {"use_gpu": True}, (8, 8, 1), 8, id="a gpu each, cpus divided"),
        pytest.param([GPU_NODE, CPU_NODE], 1, {"use_gpu": True}, (1, 8, 1), 8, id="others keep theirs"),
        pytest.param([GPU_NODE], 9, {"use_gpu": True}, (9, 1, 1), 8, id="one gpu short"),
        pytest.param([CPU_NODE], 1, {"use_gpu": False}, (1, 32, 0), 1, id="alone on a node"),
        pytest.param([CPU_NODE, {"CPU": 8.0}], 3, {"use_gpu": False}, (3, 10, 0), 3, id="nodes of two sizes"),
        pytest.param([{"CPU": 2.0}], 20, {"use_gpu": False}, (20, 1, 0), 2, id="too many"),
        pytest.param([CPU_NODE], 2, {"use_gpu": False, "cpus_per_worker": 4}, (2, 4, 0), 8, id="asked"),
        pytest.param([CPU_NODE], 2, {"use_gpu": True}, (2, 1, 1), 0, id="no gpu"),
        pytest.param([BARE_HEAD], 2, {"use_gpu": False}, (2, 1, 0), 0, id="no node yet"),
    ],
)
def test_plan_of_workers_that_all_run_at_once(nodes, n_workers, asked, plan, n_fitting):
    size, num_cpus, num_gpus = plan
    expected = PoolPlan(size=size, num_cpus=num_cpus, num_gpus=num_gpus)
    assert plan_workers(nodes, n_workers, **asked) == (expected, n_fitting)


def test_more_cpus_than_a_node_has():
    with pytest.raises(UsageError, match="the largest node of the cluster has 32 CPUs"):
        plan_pool([CPU_NODE], 5, wants_gpu=False, cpus_per_worker=33)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "no Ray cluster answers at --address 127.0.0.1:1"),
        ("ray://127.0.0.1:1", "no Ray cluster answers at --address ray://127.0.0.1:1"),
        ("nonsense", "no Ray cluster answers at --address nonsense"),
        ("http://127.0.0.1:8265", "use memory-builder submit --address http://127.0.0.1:8265"),
    ],
)
def test_an_address_where_nothing_answers(monkeypatch, address, message):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises((ConnectionFailedError, UsageError), match=message) as caught:
        connect(address)
    assert isinstance(caught.value, UsageError) == address.startswith("http")
