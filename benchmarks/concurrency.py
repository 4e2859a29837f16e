"""Readers that never stop beside a writer that appends and deletes in a loop: is every answer that of one state?

    uv run python benchmarks/concurrency.py --seconds 60 --readers 8

The memory is of random vectors; its index is an inverted file searched whole, so that the truth is known. Each reader
opens the memory, asks it several times, and opens it anew. An answer is torn when it is not exactly what the rows of
the reader's state give; a deleted row is back when a reader that opened after the deletion finds it.
"""

import contextlib
import io
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import tyro

from memory_builder.ann.parts import records_of
from memory_builder.base.runner import LocalRunner
from memory_builder.base.types import row_ids
from memory_builder.catalog.create_memory import create_memory
from memory_builder.catalog.description import Description
from memory_builder.catalog.manifest import Manifest
from memory_builder.catalog.metadata import metadata_table
from memory_builder.catalog.plan import extend_plan
from memory_builder.catalog.tombstones import current_tombstones
from memory_builder.embedding.commit_shard import commit_shard
from memory_builder.indexing.config import IndexConfig
from memory_builder.indexing.driver import index
from memory_builder.maintenance.append import append
from memory_builder.maintenance.compact import compact
from memory_builder.maintenance.delete import delete
from memory_builder.maintenance.verify import verify
from memory_builder.memory import Memory
from memory_builder.readers.shard import Source
from memory_builder.storage.records import content_hash
from memory_builder.storage.store import Store

D, SHARD_ROWS, FIRST_SHARDS = 32, 500, 8


@dataclass(frozen=True, kw_only=True)
class Concurrency:
    """How many, how long, where."""

    work: Path = Path("concurrency")
    """Folder for the memory; it must not exist."""
    readers: int = 8
    writers: int = 1
    seconds: float = 60.0
    compact_every: int = 5
    """Changes between compactions."""


@dataclass(kw_only=True)
class Outcome:
    """What happened; the lists are empty when all held."""

    answers: int = 0
    openings: int = 0
    changes: int = 0
    rows: int = 0
    deleted: int = 0
    errors: list[str]
    torn: list[str]
    back: list[str]


def add_shard(store: Store, n: int) -> None:
    """Commit one more shard of random unit vectors, as embed would."""
    rng = np.random.default_rng(n)
    vectors = rng.standard_normal((SHARD_ROWS, D)).astype(np.float32)
    faiss.normalize_L2(vectors)
    (shard,) = [s for s in extend_plan(store, [Source(uri=f"/{n}.tar", bytes=1, etag="1")]) if s.uri == f"/{n}.tar"]
    found = {"caption": "a caption", "has_image": True, "has_text": False}
    table = metadata_table([(found | {"key": f"{n}/{row}"}, {}) for row in range(SHARD_ROWS)], {})
    commit_shard(
        store,
        shard,
        images=vectors.astype(np.float16),
        texts=np.zeros((SHARD_ROWS, D), np.float16),
        metadata=table,
        rejects=[],
        partial=None,
        config_hash=content_hash({}),
        seconds={"total": 0.0},
    )


def start(store: Store) -> None:
    """A memory with an index."""
    create_memory(
        store,
        Description(
            model="none",
            pretrained=None,
            fingerprint="0" * 64,
            d=D,
            columns={},
            config={},
            config_hash=content_hash({}),
        ),
    )
    for n in range(FIRST_SHARDS):
        add_shard(store, n)
    index(
        store.root, keys=("image",), config=IndexConfig(index_key="IVF16,Flat", train_threads=1), runner=LocalRunner()
    )


class Run:
    """The threads of one run and what they see."""

    def __init__(self, config: Concurrency, enough: Callable[[Outcome], bool]) -> None:
        self.config = config
        self.enough = enough
        self.store = Store(config.work)
        self.outcome = Outcome(errors=[], torn=[], back=[])
        self.gone: set[int] = set()
        """Rows whose deletion has returned."""
        self.shards = FIRST_SHARDS
        self.lock = threading.Lock()
        self.until = time.monotonic() + config.seconds

    def guarded(self, work: Callable[[random.Random], None], seed: int) -> None:
        chance = random.Random(seed)
        try:
            while time.monotonic() < self.until and not self.enough(self.outcome):
                work(chance)
        except Exception as error:
            self.outcome.errors.append(f"{type(error).__name__}: {error}")

    def read(self, chance: random.Random) -> None:
        """Open the memory and ask it: all rows of its state must be found, in the order of their exact scores."""
        gone = set(self.gone)
        memory = Memory.open(self.config.work)
        self.outcome.openings += 1
        commits, expected = memory.commits, None
        for _ in range(3):
            query = np.random.default_rng(chance.randrange(1 << 30)).standard_normal((1, D)).astype(np.float32)
            hits = memory.search(vectors=query, k=200, nprobe=16)
            everything = memory.search(vectors=query, k=SHARD_ROWS * len(commits), nprobe=16)
            ids = everything.ids[0][everything.ids[0] >= 0]
            expected = np.sort(ids) if expected is None else expected
            exact = query / np.linalg.norm(query) @ memory.vectors(ids[:200]).T
            if not np.array_equal(np.sort(ids), expected):
                self.outcome.torn.append(f"{memory.snapshot.number}: two answers of one state hold different rows")
            if not np.array_equal(hits.ids[0], ids[:200]) or not np.allclose(hits.scores, exact, atol=1e-5):
                self.outcome.torn.append(f"{memory.snapshot.number}: not the best rows of the state")
            if len(ids) != memory.snapshot.indexes["image"].n_rows - self.dead(memory):
                self.outcome.torn.append(f"{memory.snapshot.number}: {len(ids)} rows found")
            back = gone & set(ids.tolist())
            if back:
                self.outcome.back.append(f"{memory.snapshot.number}: {sorted(back)[:3]}")
            self.outcome.answers += 2

    @staticmethod
    def dead(memory: Memory) -> int:
        """Deleted rows that the parts of this state still hold, from its records alone."""
        deleted = current_tombstones(memory.store, memory.snapshot)
        return sum(part.n_dead(deleted) for part in records_of(memory.store, memory.snapshot.indexes["image"]))

    def write(self, chance: random.Random) -> None:
        """Append a shard or delete some rows, and now and then compact."""
        with self.lock:
            self.outcome.changes += 1
            turn, n = self.outcome.changes, self.shards
        if turn % self.config.compact_every == 0:
            compact(self.store, runner=LocalRunner())
        elif turn % 2:
            with self.lock:
                self.shards += 1
            add_shard(self.store, n)
            append(self.store, runner=LocalRunner())
        else:
            commits = Manifest.read(self.store).commits
            ordinals = np.array(chance.choices(list(commits), k=200))
            ids = np.unique([row_ids(int(o), np.array([chance.randrange(SHARD_ROWS)]))[0] for o in ordinals])
            delete(self.store, ids=ids)
            with self.lock:
                self.gone |= set(ids.tolist())

    def run(self) -> Outcome:
        config = self.config
        works = [self.read] * config.readers + [self.write] * config.writers
        threads = [threading.Thread(target=self.guarded, args=(work, seed)) for seed, work in enumerate(works)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        outcome = self.outcome
        outcome.rows = Manifest.read(self.store).n_rows
        outcome.deleted = len(self.gone)
        # An append that another writer overtook leaves a part that no state names, for the next compaction to remove.
        compact(self.store, runner=LocalRunner())
        outcome.errors += [problem.problem for problem in verify(self.store, LocalRunner())]
        return outcome


def concurrency(config: Concurrency, enough: Callable[[Outcome], bool] = lambda _: False) -> Outcome:
    """One run on a new memory, which ends before its time where ``enough`` has happened."""
    with contextlib.redirect_stderr(io.StringIO()):
        start(Store(config.work))
        return Run(config, enough).run()


if __name__ == "__main__":
    found = concurrency(tyro.cli(Concurrency))
    print(
        f"{found.openings} openings, {found.answers} answers, {found.changes} changes, {found.rows} rows, "
        f"{found.deleted} deleted: {len(found.errors)} errors, {len(found.torn)} torn answers, "
        f"{len(found.back)} with deleted rows"
    )
    for line in [*found.errors, *found.torn, *found.back][:20]:
        print(line)
    raise SystemExit(bool(found.errors or found.torn or found.back))
