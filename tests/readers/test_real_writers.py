"""What the peers' own tools write is read whole: read = written + rejects, every picture with its own caption.

They live in an environment of their own: ``WRITERS_PYTHON`` is a Python that has img2dataset, webdataset and datasets.
"""

import hashlib
import json
import os
import subprocess
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from memory_builder.readers.discover import find_sources
from memory_builder.readers.read import Pair, Reject, read_pairs

PYTHON = os.environ.get("WRITERS_PYTHON")
PEERS = Path(__file__).parents[1] / "peers"
pytestmark = pytest.mark.skipif(PYTHON is None, reason="WRITERS_PYTHON names no Python that has img2dataset")


def written(script: str, out: Path) -> Path:
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}
    subprocess.run([str(PYTHON), str(PEERS / script), str(out)], check=True, env=offline, timeout=300)
    return out


@pytest.fixture(scope="module")
def img2dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written("write_img2dataset.py", tmp_path_factory.mktemp("peers") / "img2dataset")


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written("write_datasets.py", tmp_path_factory.mktemp("peers") / "datasets")


@pytest.mark.parametrize("kind", ["webdataset", "files", "parquet"])
def test_every_success_of_img2dataset_is_a_pair_with_its_own_caption(img2dataset: Path, kind: str) -> None:
    tables = [row for file in sorted((img2dataset / kind).glob("*.parquet")) for row in pq.read_table(file).to_pylist()]
    successes = {row["key"]: row for row in tables if row["status"] == "success"}
    notes: Counter[str] = Counter()
    sources = find_sources([str(img2dataset / kind)])
    items = [item for source in sources for item in read_pairs(source.uri, require="image", notes=notes)]
    pairs = {item.key.rsplit("/")[-1]: item for item in items if isinstance(item, Pair)}
    assert pairs.keys() == successes.keys()
    assert len(pairs) > 25
    for key, pair in pairs.items():
        row = successes[key]
        assert (pair.caption or "") == row["caption"].strip()
        assert (pair.fields["url"], pair.fields["similarity"]) == (row["url"], row["similarity"])
    assert +notes == {}
    n_without_picture = len(tables) - len(successes) if kind == "parquet" else 0  # its rows are there all the same
    assert sum(isinstance(item, Reject) for item in items) == n_without_picture


@pytest.mark.parametrize(
    "name", ["plain.tar", "z.tar.gz", "packed.tar", "c.tgz", "shards", "table.parquet", "hub", "imagefolder"]
)
def test_every_pair_of_webdataset_and_datasets_is_read(datasets: Path, name: str) -> None:
    truth = json.loads((datasets / "truth.json").read_text())
    sources = find_sources([str(datasets / name)])
    items = [item for source in sources for item in read_pairs(source.uri)]
    assert {
        item.caption: hashlib.sha256(item.image or b"").hexdigest() for item in items if isinstance(item, Pair)
    } == truth
    assert len(items) == len(truth)
