"""Demo on the bundled icons, with the code that users run."""

import gzip
import shutil
import time
from importlib.resources import as_file, files
from pathlib import Path

from memory_builder.base.runner import LocalRunner
from memory_builder.base.types import ROW_BITS
from memory_builder.demo.report import Query, write_report
from memory_builder.embedding.config import EmbedConfig
from memory_builder.embedding.driver import embed
from memory_builder.indexing.config import IndexConfig
from memory_builder.indexing.driver import index
from memory_builder.memory import Memory
from memory_builder.model.encoder import EncoderConfig

TEXTS = (
    "cat",
    "birthday cake",
    "umbrella",
    "bicycle",
    "coffee cup",
    "airplane",
    "key",
    "sun behind a cloud",
)
N_IMAGE_QUERIES = 6
K = 10


def run_demo(out: Path) -> Path:
    """Unpack the sample, embed, index, search; return the report's path."""
    shards = unpack_sample(out / "sample")
    memory_root = str(out / "memory")
    timings = {}
    with as_file(files("memory_builder.demo") / "model") as model:
        encoder = EncoderConfig(model=f"local-dir:{model}")
        embedded = embed(shards, memory_root, encoder=encoder, config=EmbedConfig(), runner=LocalRunner())
        timings["embed"] = embedded.seconds
        started = time.monotonic()
        index(memory_root, modality=("image", "text"), config=IndexConfig(), runner=LocalRunner())
        timings["index"] = time.monotonic() - started
        memory = Memory.open(memory_root, encoder=encoder)
        started = time.monotonic()
        queries = text_queries(memory) + image_queries(memory)
        timings[f"search ({len(queries)} queries, model loaded)"] = time.monotonic() - started
    return write_report(out / "report.html", memory, embedded, queries, timings)


def unpack_sample(folder: Path) -> list[str]:
    """Write the bundled shards as plain tars; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    for packed in sorted((files("memory_builder.demo") / "sample").iterdir(), key=lambda entry: entry.name):
        if not packed.name.endswith(".tar.gz"):
            continue
        shard = folder / packed.name.removesuffix(".gz")
        if not shard.exists():
            partial = shard.with_suffix(".partial")
            with packed.open("rb") as zipped, gzip.open(zipped) as plain, partial.open("wb") as target:
                shutil.copyfileobj(plain, target)
            partial.rename(shard)
        shards.append(str(shard))
    return shards


def text_queries(memory: Memory) -> list[Query]:
    """Search each text among the pictures."""
    memory.encoder  # noqa: B018  the timing of a search is not that of loading a model
    hits = memory.search(text=TEXTS, k=K)
    return [Query(text=text, scores=hits.scores[i], ids=hits.ids[i]) for i, text in enumerate(TEXTS)]


def image_queries(memory: Memory) -> list[Query]:
    """Search evenly spread pictures of the memory among the others."""
    thirds = [(commit, part) for part in (1, 2) for commit in memory.commits.values()][:N_IMAGE_QUERIES]
    ids = [(commit.ordinal << ROW_BITS) + commit.n_written * part // 3 for commit, part in thirds]
    pictures = [memory.picture(row_id) for row_id in ids]
    hits = memory.search(image=pictures, k=K + 1)
    queries = []
    for i, row_id in enumerate(ids):
        others = hits.ids[i] != row_id  # the nearest picture of a picture is itself
        queries.append(Query(image=row_id, scores=hits.scores[i][others][:K], ids=hits.ids[i][others][:K]))
    return queries
