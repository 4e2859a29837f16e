"""The examples are scripts, not a package: put their folders on the path as running them does."""

import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path[:0] = [str(EXAMPLES / "icons"), str(EXAMPLES)]

import benchmark  # noqa: E402
from prepare import add  # noqa: E402

SPLITS = ("base", "base", "base", "memory", "dev", "test", "shots", "dropped")


def png_of(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> benchmark.Benchmark:
    """Return the config of a finished benchmark of 96 pairs in two tars."""
    root = tmp_path_factory.mktemp("icons")
    rows = []
    (root / "pairs").mkdir()
    for shard in range(2):
        with tarfile.open(root / "pairs" / f"{shard:05d}.tar", "w") as tar:
            for number in range(shard * 48, shard * 48 + 48):
                key, split = f"set--n{number:02d}", SPLITS[number % len(SPLITS)]
                add(tar, f"{key}.png", png_of(number))
                add(tar, f"{key}.txt", b"unused")
                add(tar, f"{key}.json", json.dumps({"palette": number % 2 == 0}).encode())
                asked = {"dev": "dev", "test": "test", "shots": "test"}.get(split, "")
                rows.append(
                    {
                        "key": key, "set": "set", "entity": f"e{number % 3}", "display": f"thing {number % 3}",
                        "words": f"thing {number % 3}", "kind": "generic", "split": split,
                        "tier": ("absent", "rare", "common")[number // 8 % 3] if asked else "", "asked": asked,
                        "few_shot": split in ("test", "shots"), "artist_fold": 0, "caption": f"thing {number % 3} icon",
                    }
                )  # fmt: skip
    (root / "splits").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), root / "splits" / "splits.parquet")
    (root / "splits" / "manifest.json").write_text(json.dumps({"rules": {"seed": 0}}))
    config = benchmark.Benchmark(pairs=root / "pairs", splits=root / "splits", out=root / "one", workers=1)
    benchmark.write_benchmark(config)
    return config
