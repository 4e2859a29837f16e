"""What pixels alone give away of the pictures asked about."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from deal import MEMORY
from neighbours import Neighbours, measure


def test_the_nearest_of_all_and_of_the_tiers_classes(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    glyphs = {name: draw.integers(0, 256, (1, 32, 32), dtype=np.uint8) for name in ("sun", "moon", "star", "unasked")}
    memory = [{"key": f"set--m-{name}", "entity": name, "split": MEMORY, "tier": None} for name in glyphs]
    # The moon looks rather like a star, the star rather like a thing that nobody asks about.
    alike = {"sun": ("sun", "rare"), "moon": ("star", "rare"), "star": ("unasked", "common")}
    asked = [
        {"key": f"set--{name}", "entity": name, "split": "test", "tier": tier} for name, (_, tier) in alike.items()
    ]
    drawn = [(glyphs[name] // 3 + glyphs[like] // 3 * 2) for name, (like, _) in alike.items()]
    rows = [row | {"asked": row["split"] == "test"} for row in [*memory, *asked]]
    (tmp_path / "glyphs").mkdir()
    keys = [row["key"] for row in rows]
    np.savez(tmp_path / "glyphs" / "0.npz", keys=keys, glyphs=np.stack([*glyphs.values(), *drawn]))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "splits.parquet")
    found = measure(Neighbours(clusters=tmp_path, splits=tmp_path, out=tmp_path / "out", side="test"))
    names = ("classes", "pictures", "nearest_of_memory", "nearest_of_classes")
    assert {tier: [figures[name] for name in names] for tier, figures in found.items()} == {
        "rare": [2, 2, 0.5, 1.0],
        "common": [1, 1, 0.0, 1.0],
    }
    assert (tmp_path / "out" / "sheet.png").exists()
