"""Mutate the records and index files of a memory, a subset and a run, use what comes of it, and watch what it touches.

    uv run python benchmarks/mutated.py --records 2000 --indexes 2000 --traced

Every trial is a process of its own, over a copy of which one file was mutated: a byte flipped, cut or overwritten, or
a value of its JSON or its table replaced by another type, a huge number, nonsense or a path that leads elsewhere. It
searches, looks up, verifies, deletes, appends and compacts, or reads the subset or the run. What it may end in is an
answer or an error of ours. A signal, another exception, a time-out, and an access to a file outside the copy are
failures. Accesses are told by Python's audit events and, with ``--traced``, by strace, which sees those of faiss and
Arrow too. The seed decides everything: ``--only 17`` repeats one trial.
"""

import contextlib
import hashlib
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro

import memory_builder as mb
from memory_builder.base.runner import LocalRunner
from memory_builder.catalog.create_memory import settle_description
from memory_builder.catalog.description import Description
from memory_builder.catalog.manifest import Manifest
from memory_builder.catalog.metadata import metadata_table
from memory_builder.catalog.plan import extend_plan
from memory_builder.embedding.commit_shard import commit_shard
from memory_builder.errors import MemoryBuilderError
from memory_builder.export.faiss_ondisk import merge
from memory_builder.indexing.config import IndexConfig
from memory_builder.indexing.curve import read_curves
from memory_builder.maintenance.append import append
from memory_builder.maintenance.compact import compact
from memory_builder.maintenance.delete import delete
from memory_builder.maintenance.info import read_info
from memory_builder.maintenance.verify import verify
from memory_builder.memory import Memory
from memory_builder.readers.shard import Source
from memory_builder.storage.records import content_hash
from memory_builder.storage.store import Store, sha256

D = 16
ROWS = 1_500
LIMIT_S = 60
LIMIT_BYTES = 12 << 30
"""Of address space, most of which torch and faiss map and do not use."""
NOTHING_BEYOND = ("/usr", "/lib", "/lib64", "/opt", "/proc", "/sys", "/dev", "/etc/ld", "/etc/mime", "/etc/local")
"""Where Python and its libraries read."""
RECORD_FILES = (
    "memory.json",
    "plan.parquet",
    "manifest.parquet",
    "commits/*.json",
    "snapshots/*.json",
    "tombstones/*.npy",
    "purges/*.json",
    "failures/*.json",
    "rows/*.arrow",
    "metadata/*.parquet",
    "rejects/*.parquet",
    "img_emb/*.npy",
    "index/*/*.json",
    "index/*/*.npy",
    "index/*/parts/*.json",
    "*.lock",
)
INDEX_FILES = ("index/*/trained.faiss", "index/*/parts/*.faiss")


KEPT = ("kept.json", "kept.npy", "parts/00000-00000.faiss", "parts/00000-00000.json", "parts/thesis.txt")
"""Files beside the memory, which must stay as they are."""


@dataclass(frozen=True, kw_only=True)
class Mutated:
    """What is mutated, and how often."""

    records: int = 2_000
    """Trials with a mutated record."""
    indexes: int = 2_000
    """Trials with a mutated index file."""
    work: Path | None = None
    """Folder to work in; one that goes with the process unless given."""
    subset: Path | None = None
    """A subset that retrieve wrote, whose records are mutated too."""
    run: Path | None = None
    """A run of train react, likewise."""
    traced: bool = False
    """Run under strace, and check every file that was opened, written or removed."""
    seed: int = 0
    only: int | None = None
    """Do only this trial, and show what came of it."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one trial."""

    number: int
    file: str
    mutation: str
    end: str
    """``answer``, ``error of ours``, or what went wrong."""
    told: str = ""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Something whose files are mutated: a pristine folder, the files, and how it is used."""

    name: str
    folder: Path
    files: tuple[str, ...]
    use: Callable[[Path], None]

    def paths(self) -> list[str]:
        """Files to mutate; each pattern is met as often as any other."""
        found = [sorted(str(path.relative_to(self.folder)) for path in self.folder.glob(one)) for one in self.files]
        return [path for some in found if some for path in (some * 60)[:60]]


# What is used.


def write_memory(root: Path) -> None:
    """A memory with two indexes in several parts, an appended segment, deleted and purged rows, and every record."""
    rng = np.random.default_rng(0)
    store = Store(root)
    settings = {"fingerprint": "0" * 64}
    described = Description(
        model="", pretrained=None, fingerprint="", d=D, columns={}, config=settings, config_hash=content_hash(settings)
    )
    settle_description(store, described)
    _commit(store, rng, range(3), described.config_hash)
    runner = LocalRunner()
    config = IndexConfig(index_key="OPQ8_16,IVF16_HNSW8,PQ8x4np", part_rows=ROWS // 3, train_threads=1)
    mb.index(store, keys=("image",), config=config, runner=runner)
    mb.index(store, keys=("text",), config=replace(config, index_key="IDMap2,Flat"), runner=runner)
    _commit(store, rng, range(3, 4), described.config_hash)
    delete(store, ids=[1, 5, (1 << 32) + 3])
    compact(store, runner=runner, purge=True)
    append(store, runner=runner)
    delete(store, ids=[9, (3 << 32) + 3])
    store.put(
        "failures/00004.json",
        json.dumps({"ordinal": 4, "uri": "/synthetic/4.tar", "error": "gone", "failed_s": 1.0}).encode(),
    )
    extend_plan(store, [Source(uri="/synthetic/4.tar", bytes=1, etag="1")])


def _commit(store: Store, rng: np.random.Generator, ordinals: range, hash_of_config: str) -> None:
    n = ROWS // 3
    plan = extend_plan(store, [Source(uri=f"/synthetic/{i}.tar", bytes=1, etag="1") for i in ordinals])
    for shard in plan:
        if shard.ordinal not in ordinals:
            continue
        vectors = rng.standard_normal((2, n, D)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
        found = [
            {"key": f"{i:05d}", "caption": f"caption {i}", "member": f"{i}.png", "has_image": True, "has_text": True}
            | {"width": 8, "height": 8, "sha256": sha256(str((shard.ordinal, i)).encode())}
            for i in range(n)
        ]
        commit_shard(
            store,
            shard,
            images=vectors[0].astype(np.float16),
            texts=vectors[1].astype(np.float16),
            metadata=metadata_table([(row, {"url": "http://192.0.2.1/x.png"}) for row in found], {}),
            rejects=[],
            partial=None,
            hash_of_config=hash_of_config,
            seconds={"total": 0.0},
        )
    Manifest.read(store).fold(store)


def use_memory(root: Path) -> None:
    """Everything that a command does with a memory that needs no model; an error of ours in one keeps no other back."""
    store, runner = Store(root), LocalRunner()
    queries = np.random.default_rng(1).standard_normal((3, D))

    def search() -> None:
        memory = Memory.open(root)
        for keys in ("image", "text"):
            hits = memory.search(vectors=queries, k=5, keys=keys, side="text", where="width >= 0")
            hits = memory.search(vectors=queries, k=7, keys=keys, nprobe=1 << 20)
            memory.rows(hits.ids).to_pylist()
            memory.metadata(hits.ids.ravel()).to_pylist()
            memory.vectors(hits.ids, keys)

    steps: list[Callable[[], object]] = [
        search,
        lambda: read_info(store),
        lambda: read_curves(store),
        lambda: verify(store, runner),
        lambda: merge(store, "image", runner=runner),
        lambda: delete(store, ids=[2]),
        lambda: append(store, runner=runner),
        lambda: compact(store, runner=runner),
        lambda: compact(store, runner=runner, purge=True),
        lambda: Memory.open(root).search(vectors=queries, k=5),
    ]
    _all(steps)


def use_subset(root: Path) -> None:
    """What reads a subset: retrieve when it goes on, and training."""
    from memory_builder.retrieval.chosen import read_chosen, read_piece
    from memory_builder.retrieval.copies.exclude import Evaluation, done_excluded
    from memory_builder.retrieval.pieces import done_pieces
    from memory_builder.retrieval.search import read_block, whole_blocks
    from memory_builder.retrieval.summary import final_claims
    from trainer.react.subset import described_encoder, open_subset

    store = Store(root)

    def chosen() -> None:
        made = read_chosen(store)
        for number in range(len(made.pieces) if made else 0):
            read_piece(store, number).to_pylist()
        if made and len(done_pieces(store)) == len(made.pieces):
            final_claims(store, len(made.pieces))

    def excluded() -> None:
        if done_excluded(store):
            Evaluation.read(store)

    steps: list[Callable[[], object]] = [
        chosen,
        lambda: [read_block(store, block).to_pylist() for block in whole_blocks(store).values()],
        excluded,
        lambda: open_subset(str(root)),
        lambda: described_encoder(str(root)),
    ]
    _all(steps)


def use_run(root: Path) -> None:
    """What reads a run: training when it goes on, loading and reports."""
    from trainer.evaluate.results import read_predictions, read_results
    from trainer.loop.checkpoint import find_checkpoint, is_finished, read_tensors
    from trainer.loop.metrics_log import MetricsLog
    from trainer.loop.run_config import read_run, refuse_other_settings

    run = Store(root)

    def results() -> None:
        for result in read_results(run):
            read_predictions(run, str(result["file"]))

    def tensors() -> None:
        state = find_checkpoint(run)
        for name in state.checksums:
            read_tensors(run, state, name)

    steps: list[Callable[[], object]] = [
        lambda: read_run(run, "react"),
        lambda: refuse_other_settings(run, {"react": {}}),
        lambda: is_finished(run),
        tensors,
        lambda: MetricsLog(run, 1, 2, 8).close(),
        results,
    ]
    _all(steps)


def _all(steps: Sequence[Callable[[], object]]) -> None:
    """Take every step; the first error of ours is raised at the end."""
    first: MemoryBuilderError | None = None
    for step in steps:
        try:
            step()
        except MemoryBuilderError as error:
            first = first or error
    if first is not None:
        raise first


# How it is mutated.


def mutate(path: Path, rng: random.Random, victim: Path) -> str:
    """Change one file; returns how, in words."""
    ways: list[Callable[[Path, random.Random, Path], str]] = [_flip, _cut, _overwrite]
    if path.suffix in (".json", ".lock"):
        ways += [_mutate_json] * 9
    if path.suffix == ".parquet":
        ways += [_mutate_table] * 6
    if path.suffix == ".npy":
        ways += [_mutate_header] * 2
    for _ in range(20):
        with contextlib.suppress(ValueError, TypeError, LookupError, OverflowError, pa.ArrowException):
            return rng.choice(ways)(path, rng, victim)
    return _flip(path, rng, victim)


def _flip(path: Path, rng: random.Random, _: Path) -> str:
    data = bytearray(path.read_bytes()) or bytearray(b"x")
    n = rng.choice((1, 1, 1, 2, 8))
    span = min(len(data), 300) if rng.random() < 0.5 else len(data)
    for _one in range(n):
        data[rng.randrange(span)] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return f"{n} bits flipped"


def _cut(path: Path, rng: random.Random, _: Path) -> str:
    data = path.read_bytes()
    length = rng.choice((0, 1, len(data) // 2, max(0, len(data) - 1), rng.randrange(len(data) + 1)))
    path.write_bytes(data[:length])
    return f"cut to {length} of {len(data)} bytes"


def _overwrite(path: Path, rng: random.Random, _: Path) -> str:
    data = bytearray(path.read_bytes())
    numbers = (0, 1, -1, 1 << 31, (1 << 63) - 1, -(1 << 63), 1 << 40, 255, 1 << 20, rng.randrange(1 << 62))
    span = min(len(data), 400) if rng.random() < 0.7 else len(data)
    at, number, size = rng.randrange(max(1, span)), rng.choice(numbers), rng.choice((4, 8))
    data[at : at + size] = (number % (1 << 8 * size)).to_bytes(size, "little")
    path.write_bytes(data)
    return f"{number} written over {size} bytes at {at}"


def _nasty(rng: random.Random, victim: Path) -> Any:
    paths = [
        "../victim",
        f"index/../../{victim.name}",
        str(victim),
        f"{victim}/kept.json",
        "/etc/passwd",
        "..",
        ".",
        "/",
    ]
    paths += ["file:///etc/passwd", "s3://192.0.2.1/x", "a\0b", "tombstones/../../victim/kept.npy", "../victim/kept"]
    values = [None, True, 0, -1, 7, 1 << 31, 1 << 53, (1 << 63) - 1, 1 << 64, 10**400, 1.5, -0.0, 1e308]
    values += [float("nan"), float("inf"), "", "x", "7", "\ud800", "x" * 100_000, [], {}, [[]], [None], {"": {}}]
    values += [[1, "a", None, {"b": []}], {"index": "../victim", "segments": 7}, [["../../victim/kept"]]]
    return rng.choice(rng.choice((values, paths)))


def _nested() -> str:
    return "[" * 50_000 + "]" * 50_000


def _mutate_json(path: Path, rng: random.Random, victim: Path) -> str:
    tree = json.loads(path.read_bytes())
    places = list(_places(tree))
    if not places:
        raise ValueError("nothing to mutate")
    parent, key = rng.choice(places)
    way = rng.choice(("replace", "replace", "replace", "remove", "add", "rename", "nest", "double"))
    if way == "replace":
        parent[key] = _nasty(rng, victim)
    elif way == "remove":
        del parent[key]
    elif way == "add" and isinstance(parent, dict):
        parent[rng.choice(("new", "__class__", "", str(victim), "../x"))] = _nasty(rng, victim)
    elif way == "rename" and isinstance(parent, dict):
        parent[rng.choice((str(victim), "../../x", f"{key}x"))] = parent.pop(key)
    elif way == "nest":
        parent[key] = "NESTED"
    elif isinstance(parent, list):
        parent.append(parent[key])
    text = json.dumps(tree, indent=1)
    path.write_text(text.replace('"NESTED"', _nested()), encoding="utf-8", errors="surrogatepass")
    return f"{way} at {key!r}: {str(parent.get(key, '') if isinstance(parent, dict) else '')[:60]}"


def _places(tree: Any) -> Any:
    for key, value in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
        yield tree, key
        if isinstance(value, dict | list):
            yield from _places(value)


def _mutate_table(path: Path, rng: random.Random, victim: Path) -> str:
    table = pq.read_table(path)
    column = rng.choice(table.column_names)
    at = table.schema.get_field_index(column)
    way = rng.choice(("drop", "type", "null", "value", "value", "rows", "double", "metadata", "json"))
    if way == "drop":
        table = table.drop_columns([column])
    elif way == "type":
        other = rng.choice((pa.string(), pa.int8(), pa.float32(), pa.binary(), pa.list_(pa.int64())))
        table = table.set_column(at, column, pa.nulls(len(table), other))
    elif way == "null":
        table = table.set_column(at, table.schema.field(at), pa.nulls(len(table), table.schema.field(at).type))
    elif way == "value":
        values = table[column].to_pylist()
        values[rng.randrange(len(values))] = _nasty(rng, victim)
        table = table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))
    elif way == "rows":
        table = pa.concat_tables([table] * rng.choice((2, 5)))
    elif way == "double":
        table = table.append_column(column, table[column])
    elif way == "metadata":
        metadata = {"version": rng.choice(("x", "-1", "9" * 30, "")), "description": rng.choice(("", "{}", "[1"))}
        table = table.replace_schema_metadata(metadata)
    else:
        values = [json.dumps(_nasty(rng, victim)) for _ in range(len(table))]
        table = table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))
    pq.write_table(table, path)
    return f"table: {way} of {column}"


def _mutate_header(path: Path, rng: random.Random, _: Path) -> str:
    array = np.load(path)
    shape = rng.choice(((), (0,), (1 << 40,), (1 << 62, 2), (-1,), (array.size + 1,), (2, 2, 2), array.shape * 2))
    kind = rng.choice(("<f2", "<i8", "|O", "<f8", "|S4", "<M8[ns]", "|V8", array.dtype.str))
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": kind, "fortran_order": rng.random() < 0.3, "shape": shape})
    path.write_bytes(head.getvalue() + array.tobytes())
    return f"npy: {kind}{list(shape)}"


def fit_record(path: Path) -> None:
    """Let the record of an index file say what the file is by now, as whoever made it up would."""
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    record = path.with_suffix(".json")
    told = json.loads(record.read_text())
    told |= {"sha256": digest} | ({"bytes": len(data)} if path.parent.name == "parts" else {})
    record.write_text(json.dumps(told))
    if path.parent.name != "parts":
        for part in (path.parent / "parts").glob("*.json"):
            part.write_text(json.dumps(json.loads(part.read_text()) | {"quantizer_sha256": digest}))


# How it is tried.


STARTS = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "pickle.find_class")
PATHS = {"open": 1, "os.remove": 1, "os.rename": 2, "os.link": 2, "os.symlink": 2, "os.mkdir": 1, "os.rmdir": 1}
PATHS |= {"os.truncate": 1, "os.listdir": 1, "os.scandir": 1, "shutil.rmtree": 1, "os.chmod": 1, "os.utime": 1}
"""Audit event → how many of its first arguments are paths."""


class Watched:
    """What Python opens, removes, renames, connects to and starts, as its audit events tell it."""

    def __init__(self, inside: Path) -> None:
        self.inside, self.outside, self.on = str(inside), [], False
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in STARTS and not is_tensorboard(event, arguments):
            self.outside.append(f"{event} {arguments}"[:200])
        for path in arguments[: PATHS.get(event, 0)]:
            if isinstance(path, str | bytes | os.PathLike) and not is_allowed(os.fsdecode(path), self.inside):
                self.outside.append(f"{event} {path!r}"[:200])


def is_tensorboard(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether it is what TensorBoard's writer says to its own thread."""
    own = str(arguments[0]).startswith("tensorboardX.") or tuple(arguments) == ("builtins", "object")
    return event == "pickle.find_class" and own


def is_allowed(path: str, inside: str) -> bool:
    """Whether a trial may touch this path: the copy, and what Python and its libraries read."""
    real = os.path.normpath(os.path.join(os.getcwd(), path))
    libraries = (sys.prefix, sys.base_prefix, str(Path(__file__).resolve().parents[1]), *NOTHING_BEYOND)
    return real == inside or real.startswith(f"{inside}/") or real.startswith(libraries) or real in ("/", "")


def attempt(kind: Kind, number: int, file: str, config: Mutated, work: Path, fits: bool) -> Outcome:
    """One trial, in a process of its own."""
    rng, copy, victim = random.Random(f"{config.seed} {kind.name} {number}"), work / "copy" / "memory", work / "victim"
    shutil.rmtree(copy.parent, ignore_errors=True)
    shutil.copytree(kind.folder, copy)
    mutation = mutate(copy / file, rng, victim)
    if fits:
        fit_record(copy / file)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        end = _in_child(kind, copy, config.only is not None)
        os.write(write, json.dumps(end).encode()[:60_000])
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        end = ["time-out" if name == "SIGALRM" else f"signal {name}", ""]
    else:
        end = json.loads(told or b'["died", ""]')
    if _digest(victim) != _digest(work / "victim-before"):
        end = ["victim changed", ""]
    return Outcome(number=number, file=file, mutation=mutation, end=end[0], told=end[1])


def _in_child(kind: Kind, copy: Path, shows: bool) -> list[str]:
    signal.alarm(LIMIT_S)
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if not shows:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 2)
        os.dup2(quiet, 1)
    watched = Watched(copy)
    tempfile.tempdir = str(copy)
    with contextlib.suppress(OSError):
        os.stat(f"/TRIAL/{copy}")  # where a trial begins in strace's log
    watched.on = True
    try:
        kind.use(copy)
        end = ["answer", ""]
    except MemoryBuilderError as error:
        end = ["error of ours", str(error)]
    except BaseException as error:
        end = [f"unclean {type(error).__name__}", traceback.format_exc()[-1500:]]
    watched.on = False
    if shows:
        print("\n".join(end), file=sys.stderr)
    if watched.outside:
        end = ["outside", "; ".join(watched.outside[:3])]
    return end


def _digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def mutated(config: Mutated) -> list[Outcome]:
    """All trials; print how many came to what."""
    with tempfile.TemporaryDirectory(prefix="mutated-") as folder:
        work = (config.work or Path(folder)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        for name in ("victim", "victim-before"):
            (work / name / "parts").mkdir(parents=True, exist_ok=True)
            for file in KEPT:
                (work / name / file).write_text("kept")
        if not (work / "memory").exists():
            write_memory(work / "memory")
        if config.subset is not None or config.run is not None:  # torch starts a program as it is imported
            import tensorboardX  # noqa: F401

            import trainer.loop.metrics_log
            import trainer.react.subset  # noqa: F401
        kinds = [Kind(name="record", folder=work / "memory", files=RECORD_FILES, use=use_memory)]
        if config.subset is not None:
            files = ("*.json", "*.parquet", "*/*.json", "*/*.parquet", "*/*.npy")
            kinds.append(Kind(name="subset", folder=config.subset, files=files, use=use_subset))
        if config.run is not None:
            files = ("config.json", "metrics.jsonl", "checkpoints/*/*", "eval/*.json", "eval/*.parquet")
            kinds.append(Kind(name="run", folder=config.run, files=files, use=use_run))
        index = Kind(name="index", folder=work / "memory", files=INDEX_FILES, use=use_memory)
        outcomes = [
            *_trials(kinds, config.records, config, work, is_index=False),
            *_trials([index], config.indexes, config, work, is_index=True),
        ]
        shutil.rmtree(work / "copy", ignore_errors=True)
    return outcomes


def _trials(kinds: list[Kind], n: int, config: Mutated, work: Path, *, is_index: bool) -> list[Outcome]:
    outcomes = []
    for number in range(n):
        if config.only not in (None, number):
            continue
        rng = random.Random(f"{config.seed} {is_index} {number}")
        kind = kinds[0] if rng.random() < 0.7 else rng.choice(kinds)
        file = rng.choice(kind.paths())
        outcomes.append(attempt(kind, number, file, config, work, fits=is_index and rng.random() < 0.7))
        if not is_clean(outcomes[-1]):
            print(json.dumps(asdict(outcomes[-1])), file=sys.stderr, flush=True)
        if len(outcomes) % 100 == 0:
            print(f"{len(outcomes)} of {n}: {tally(outcomes)}", file=sys.stderr, flush=True)
    return outcomes


def tally(outcomes: Sequence[Outcome]) -> str:
    """How many came to what."""
    return ", ".join(f"{n:,} {end}" for end, n in Counter(outcome.end for outcome in outcomes).most_common())


def is_clean(outcome: Outcome) -> bool:
    """Whether a trial ended as it may."""
    return outcome.end in ("answer", "error of ours")


def trace(arguments: list[str], log: Path) -> list[str]:
    """Run this script under strace; returns the accesses of trials to what lies outside."""
    calls = "open,openat,openat2,creat,unlink,unlinkat,rename,renameat,renameat2,link,linkat,mkdir,mkdirat,rmdir"
    calls += ",truncate,stat,newfstatat,connect,execve"
    command = ["strace", "-f", "--seccomp-bpf", "-qq", "-s", "300", "-e", f"trace={calls}", "-o", str(log)]
    subprocess.run([*command, sys.executable, __file__, *arguments], check=False)
    outside, driver, inside = [], None, ""
    with log.open(errors="replace") as lines:
        for line in lines:
            process, _, call = line.partition(" ")
            driver = driver or process
            if '"/TRIAL/' in call:
                inside = call.split('"/TRIAL/')[1].split('"')[0]
            elif inside and process != driver and _is_outside(call.strip(), inside):
                outside.append(line.strip()[:300])
    return outside


def _is_outside(call: str, inside: str) -> bool:
    if call.startswith(("connect(", "execve(")):
        return "AF_UNIX" not in call
    if call.startswith(("stat(", "newfstatat(")):
        return False  # it tells nothing of what is in a file
    paths = call.split('"')[1::2]
    return any(not is_allowed(path, inside) for path in paths)


if __name__ == "__main__":
    given = tyro.cli(Mutated)
    if os.environ.get("OMP_NUM_THREADS") != "1":  # a process that forks must not have threads that wait for work
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"OMP_NUM_THREADS": "1"})
    if given.traced:
        log = Path(tempfile.gettempdir()) / f"mutated-{os.getpid()}.strace"
        rest = [argument for argument in sys.argv[1:] if argument != "--traced"]
        found = trace(rest, log)
        print(f"{len(found)} accesses outside, in {log}" + "".join(f"\n{line}" for line in found[:20]))
        sys.exit(1 if found else 0)
    ended = mutated(given)
    print(f"{len(ended)} trials: {tally(ended)}")
    sys.exit(0 if all(map(is_clean, ended)) else 1)
