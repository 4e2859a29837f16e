"""Every item comes back once, with its result or its own exception."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from memory_builder.base.runner import GPU_FILES, LocalRunner


@dataclass
class Meets:
    """Work that waits for another item to be in work; ``met`` says whether there was one."""

    wants_gpu: bool
    patience_s: float
    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(2))

    def start(self) -> Callable[[int], bool]:
        return self._work

    def _work(self, item: int) -> bool:
        if item == 3:
            raise ValueError("three")
        try:
            self.barrier.wait(self.patience_s)
        except threading.BrokenBarrierError:
            return False
        return True


def test_items_come_in_order_one_at_a_time() -> None:
    results = list(LocalRunner().run(Meets(wants_gpu=True, patience_s=0.05), range(5)))
    assert [item for item, _ in results] == list(range(5))
    assert [result for item, result in results if item != 3] == [False] * 4
    assert isinstance(results[3][1], ValueError)


def test_on_a_gpu_two_items_are_in_work_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memory_builder.base.runner.has_gpu", lambda: True)
    results = list(LocalRunner().run(Meets(wants_gpu=True, patience_s=20), range(2)))
    assert [item for item, _ in results] == [0, 1]
    assert [result for _, result in results[:2]] == [True, True]


def test_torch_is_not_imported_to_look_for_a_gpu_where_no_driver_is() -> None:
    if any(map(os.path.exists, GPU_FILES)):
        pytest.skip("a GPU's driver is here")
    ask = "import sys; from memory_builder.base.runner import has_gpu; print(has_gpu(), 'torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", ask], text=True).split() == ["False", "False"]
