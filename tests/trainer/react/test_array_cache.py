from pathlib import Path

import numpy as np

from memory_builder.storage.store import Store
from trainer.react import array_cache


def test_no_more_files_are_open_than_a_process_may_have(tmp_path, monkeypatch):
    monkeypatch.setattr(array_cache, "OPEN_FILES", 3)
    rows = array_cache.ArrayCache(Store(tmp_path), "rows", 20, 2)
    rows.fill("rows", lambda places: places.astype(np.float32))
    assert rows.read(np.arange(19, -1, -1)).tolist() == list(range(19, -1, -1))
    assert Path("/proc/self/maps").read_text().count(str(tmp_path)) == 3
