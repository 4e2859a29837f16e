import json
import subprocess
import sys
from itertools import chain

import numpy as np
import pytest

from helpers.bundled import HELPERS
from helpers.tiny_runs import write_subset
from memory_builder.errors import UsageError
from trainer.loop.distributed import World
from trainer.loop.sampler import BatchSampler

WORKERS = HELPERS / "workers.py"


def test_one_two_and_four_workers_find_the_same_loss_and_gradients(tiny, icons, tmp_path):
    write_subset(tmp_path / "subset", icons[:6], n_tars=3)
    done = subprocess.run([sys.executable, WORKERS, tiny, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    differences = json.loads(done.stdout.splitlines()[-1])
    assert differences.keys() == {"2", "4"}
    assert all(difference < 1e-9 for difference in differences.values()), differences


def test_a_step_trains_on_the_same_pairs_whatever_the_number_of_workers():
    order = BatchSampler(n_pairs=30, batch_size=8, epochs=2, seed=3)
    assert order.n_steps == 6
    alone = [some.pairs.tolist() for some in order.indices(World(0, 1))]
    for size in (2, 4):
        shared = [[some.pairs.tolist() for some in order.indices(World(rank, size))] for rank in range(size)]
        assert [list(chain(*step)) for step in zip(*shared, strict=True)] == alone
    assert [some.pairs.tolist() for some in order.indices(World(0, 1), start=4)] == alone[4:]
    first_epoch = np.concatenate(alone[:3])
    assert len(set(first_epoch.tolist())) == 24
    assert sorted(alone[0]) != sorted(alone[3])


def test_a_batch_that_cannot_be_shared_equally_is_refused():
    order = BatchSampler(n_pairs=30, batch_size=8, epochs=1, seed=0)
    with pytest.raises(UsageError, match="--batch-size 8 cannot be shared equally by 3 workers"):
        next(order.indices(World(0, 3)))
