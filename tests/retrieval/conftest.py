"""A memory of real icons in several kinds of sources, and what is asked of it."""

import csv
import gzip
import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import memory_builder
import memory_builder as mb
from memory_builder.base.runner import LocalRunner
from memory_builder.embedding.config import EmbedConfig
from memory_builder.indexing.config import IndexConfig
from memory_builder.model.encoder import EncoderConfig
from memory_builder.readers.read import Pair, read_pairs

SAMPLE = Path(memory_builder.__file__).parent / "demo" / "sample"
N_A_SHARD = 60


@pytest.fixture(scope="session")
def icon_sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five shards of 60 icons: two tars, a zipped one, a parquet file with the pictures and a listing of links."""
    home = tmp_path_factory.mktemp("icons")
    plain = []
    for i, packed in enumerate(sorted(SAMPLE.glob("*.tar.gz"))):
        with gzip.open(packed) as stream, tarfile.open(fileobj=io.BytesIO(stream.read())) as source:
            members = source.getmembers()
            keys = list(dict.fromkeys(member.name.split(".")[0] for member in members))[:N_A_SHARD]
            plain.append(home / f"{i}.tar")
            with tarfile.open(plain[-1], "w") as tar:
                for member in members:
                    if member.name.split(".")[0] in keys:
                        tar.addfile(member, source.extractfile(member))
    (home / "2.tar.gz").write_bytes(gzip.compress(plain[2].read_bytes(), mtime=0))
    plain[2].unlink()
    some = [pair for pair in read_pairs(str(plain[3])) if isinstance(pair, Pair)]
    columns = {"key": [p.key for p in some], "image": [p.image for p in some], "caption": [p.caption for p in some]}
    pq.write_table(pa.table(columns), home / "3.parquet", row_group_size=25)
    plain[3].unlink()
    (home / "pictures").mkdir()
    with (home / "4.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["key", "path", "caption"])
        for pair in read_pairs(str(plain[4])):
            assert isinstance(pair, Pair)
            (home / "pictures" / f"{pair.key}.png").write_bytes(pair.image or b"")
            rows.writerow([pair.key, f"pictures/{pair.key}.png", pair.caption])
    plain[4].unlink()
    return home


def sources_of(home: Path) -> list[str]:
    return [str(home / name) for name in ("0.tar", "1.tar", "2.tar.gz", "3.parquet", "4.csv")]


@pytest.fixture(scope="session")
def icon_memory(icon_sources: Path, model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A memory of them with both indexes. Read only: copy it to change it."""
    memory = tmp_path_factory.mktemp("icon-memory") / "memory"
    encoder, runner = EncoderConfig(model=f"local-dir:{model_dir}"), LocalRunner()
    report = mb.embed(sources_of(icon_sources), str(memory), encoder=encoder, config=EmbedConfig(), runner=runner)
    assert (report.n_rows, report.failed) == (5 * N_A_SHARD, {})
    mb.index(str(memory), keys=["image", "text"], config=IndexConfig(), runner=runner)
    return memory
