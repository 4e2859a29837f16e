"""The command. Each subcommand is a frozen dataclass whose fields are its flags.

Results go to standard output, progress and errors to standard error. Exit code 0: done, 1: work failed, 2: it cannot
be done as asked.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro
from tyro.conf import OmitArgPrefixes, Positional, Suppress, arg, subcommand

from memory_builder.console import print_curves, print_embedded, print_indexes, print_state, print_table
from memory_builder.describe import EmbedConfig
from memory_builder.encoder import EncoderConfig
from memory_builder.errors import MemoryBuilderError, UsageError
from memory_builder.indexing import IndexConfig
from memory_builder.progress import duration
from memory_builder.rows import NO_ROW, Keys
from memory_builder.runner import LocalRunner, Runner
from memory_builder.serving import ServeFormat
from memory_builder.storage import Store

if TYPE_CHECKING:
    pass

FAILED, INTERRUPTED = 1, 130


@dataclass(frozen=True, kw_only=True)
class RunnerOptions:
    """Where the work is done."""

    runner: Literal["local", "ray"] = "local"
    """local: in this process. ray: on the actors of a Ray cluster."""
    address: str | None = None
    """Ray cluster to join, as for ray.init; without one that of RAY_ADDRESS, else one is started on this machine."""
    cpus_per_worker: int | None = None
    """CPUs, and so threads, of each worker on Ray."""

    def start(self) -> Runner:
        """The runner itself."""
        if self.runner == "local":
            if self.address is not None or self.cpus_per_worker is not None:
                raise UsageError("--address and --cpus-per-worker need --runner ray")
            return LocalRunner()
        from cluster.runner import RayRunner

        return RayRunner(address=self.address, cpus_per_worker=self.cpus_per_worker)


@dataclass(frozen=True, kw_only=True)
class Embed:
    """Embed shards of image-text pairs into a memory. Run it again to go on, or to add shards."""

    source: Annotated[tuple[str, ...], Positional, arg(metavar="SOURCE…")]
    """Tars, parquet files, CSV, TSV or JSONL listings: files, folders of them or of pictures, globs, brace ranges such
    as 'data/{00000..00099}.tar'; local, s3://, gs://, https://."""
    memory: str
    """Folder of the memory: a local path or an fsspec URL."""
    encoder: OmitArgPrefixes[EncoderConfig]
    config: OmitArgPrefixes[EmbedConfig] = field(default_factory=EmbedConfig)
    decode_threads: int | None = None
    """Threads that decode pictures in each worker; as many as it has CPUs unless given."""
    retry_failed: bool = False
    """Only the shards that failed last time: those of SOURCE, or without SOURCE all of the memory's."""
    retry_rejects: bool = False
    """Only the pairs that were rejected, likewise; what comes of them becomes new shards."""
    on: OmitArgPrefixes[RunnerOptions] = field(default_factory=RunnerOptions)

    def run(self) -> int:
        from memory_builder.build import embed

        if self.retry_failed and self.retry_rejects:
            raise UsageError("--retry-failed and --retry-rejects: one after the other")
        if not self.source and not self.retry_failed and not self.retry_rejects:
            raise UsageError("nothing to embed: name shards, as in embed 'data/*.tar' --memory MEMORY --model …")
        report = embed(
            self.source,
            self.memory,
            encoder=self.encoder,
            config=self.config,
            runner=self.on.start(),
            decode_threads=self.decode_threads,
            retry_failed=self.retry_failed,
            retry_rejects=self.retry_rejects,
        )
        return 0 if print_embedded(report) else FAILED


@dataclass(frozen=True, kw_only=True)
class Import:
    """Adopt published embeddings (clip-retrieval, LAION): img_emb/*.npy, text_emb/*.npy, metadata/*.parquet."""

    root: Annotated[str, Positional, arg(metavar="NPY_ROOT")]
    """Folder that holds those folders: a local path or an fsspec URL."""
    memory: str
    """Folder of the memory: a local path or an fsspec URL."""
    model: str | None = None
    """The model they were made with, as for embed; without it only vectors can be asked for."""
    pretrained: str | None = None
    """A pretrained tag or a weights file of --model."""
    columns: tuple[str, ...] = ()
    """Metadata fields to keep as columns, as name:type with type string, int, float or bool."""
    index: Path | None = None
    """A faiss index published with them, to be used as it is: one file, or a folder with populated.index and
    merged_index.ivfdata."""
    keys: Keys = "image"
    """Which vectors --index holds."""
    on: OmitArgPrefixes[RunnerOptions] = field(default_factory=RunnerOptions)

    def run(self) -> int:
        from memory_builder.build import adopt, import_embeddings

        encoder = EncoderConfig(model=self.model, pretrained=self.pretrained) if self.model else None
        config, runner = EmbedConfig(columns=self.columns), self.on.start()
        report = import_embeddings(self.root, self.memory, encoder=encoder, config=config, runner=runner)
        if not print_embedded(report):
            return FAILED
        if self.index is not None:
            adopt(self.memory, self.root, self.index, keys=self.keys, runner=runner)
        return 0


@dataclass(frozen=True, kw_only=True)
class Index:
    """Index a memory's vectors and tune the search to a target recall. Run it again to go on."""

    memory: Annotated[str, Positional, arg(metavar="MEMORY")]
    """Folder of the memory."""
    keys: Literal["image", "text", "both"] = "both"
    """Which vectors to index; both: those there are."""
    config: OmitArgPrefixes[IndexConfig] = field(default_factory=IndexConfig)
    on: OmitArgPrefixes[RunnerOptions] = field(default_factory=RunnerOptions)

    def run(self) -> int:
        from memory_builder.build import index, present_keys
        from memory_builder.info import read_info

        started = time.monotonic()
        keys: tuple[Keys, ...] = present_keys(Store(self.memory)) if self.keys == "both" else (self.keys,)
        index(self.memory, keys=keys, config=self.config, runner=self.on.start())
        print_indexes(read_info(Store(self.memory)).indexes)
        print(duration(time.monotonic() - started))
        return 0


@dataclass(frozen=True, kw_only=True)
class Search:
    """Find the rows nearest to texts, pictures or vectors."""

    memory: Annotated[str, Positional, arg(metavar="MEMORY")]
    """Folder of the memory."""
    text: tuple[str, ...] = ()
    """Query texts."""
    image: tuple[str, ...] = ()
    """Query pictures: files."""
    vector: Path | None = None
    """Query vectors: a .npy file, [q, d] or [d]."""
    keys: Keys = "image"
    """Search among the rows' image or text vectors."""
    k: Annotated[int, arg(aliases=["-k"])] = 10
    """Rows for each query."""
    where: str | None = None
    """Only rows whose metadata fulfil this, such as "width >= 256 AND caption LIKE '%cat%'"."""
    nprobe: int | None = None
    """Inverted lists to scan, instead of the tuned number."""
    refine: int | None = None
    """Candidates to re-rank for each row asked for, instead of the tuned number."""
    model: str | None = None
    """Where the memory's model is now, if not where it was; weights must be the same."""
    pretrained: str | None = None
    """Pretrained tag or weights file of --model."""
    serve_format: ServeFormat = "plain"
    """fastscan: hold the codes in RAM in the form that SIMD scans; for 4-bit PQ and RaBitQ."""
    json: bool = False
    """One JSON object a query."""

    def run(self) -> int:
        from memory_builder.memory import Memory

        encoder = EncoderConfig(model=self.model, pretrained=self.pretrained) if self.model else None
        memory = Memory.open(self.memory, encoder=encoder, serve_format=self.serve_format)
        hits = memory.search(
            text=self.text or None,
            image=self.image or None,
            vectors=_read_vectors(self.vector) if self.vector else None,
            k=self.k,
            keys=self.keys,
            where=self.where,
            nprobe=self.nprobe,
            refine=self.refine,
        )
        n_queries, k = hits.ids.shape
        rows = memory.rows(hits.ids).to_pylist()
        names = self.text or self.image or tuple(f"vector {i}" for i in range(n_queries))
        for i in range(n_queries):
            found = [
                {"id": row["id"], "score": round(float(score), 6), "key": row["key"], "caption": row["caption"]}
                for row, score in zip(rows[i * k : (i + 1) * k], hits.scores[i], strict=True)
                if row["id"] != NO_ROW
            ]
            if self.json:
                print(json.dumps({"query": i, "hits": found}, ensure_ascii=False))
            else:
                print_table(names[i], ("score", "id", "key", "caption"), found)
        return 0


@dataclass(frozen=True, kw_only=True)
class Append:
    """Index the rows of shards embedded since, without training anew."""

    memory: Annotated[str, Positional, arg(metavar="MEMORY")]
    """Folder of the memory."""
    keys: Literal["image", "text", "both"] = "both"
    """Which indexes; both: those there are."""
    on: OmitArgPrefixes[RunnerOptions] = field(default_factory=RunnerOptions)

    def run(self) -> int:
        from memory_builder.changes import append

        append(Store(self.memory), keys=() if self.keys == "both" else (self.keys,), runner=self.on.start())
        print_state(self.memory)
        return 0


@dataclass(frozen=True, kw_only=True)
class Delete:
    """Delete rows: no search finds them from then on. compact takes them out of the index, with --purge for good."""

    memory: Annotated[str, Positional, arg(metavar="MEMORY")]
    """Folder of the memory."""
    ids: tuple[int, ...] = ()
    """Row ids, as search prints them."""
    keys: tuple[str, ...] = ()
    """Keys of pairs, or a file with one a line."""
    where: str | None = None
    """The rows whose metadata fulfil this, as for search."""

    def run(self) -> int:
        from memory_builder.changes import delete

        keys = _read_keys(self.keys)
        delete(Store(self.memory), ids=self.ids or None, keys=keys or None, where=self.where)
        print_state(self.memory)
        return 0


@dataclass(frozen=True, kw_only=True)
class Compact:
    """Take deleted rows out of the index, and merge what was appended into larger parts."""

    memory: Annotated[str, Positional, arg(metavar="MEMORY")]
    """Folder of the memory."""
    purge: bool = False
    """Also blank the vectors, captions and urls of deleted rows, and remove every file that holds one of them."""
    on: OmitArgPrefixes[RunnerOptions] = field(default_factory=RunnerOptions)

    def run(self) -> int:
        from memory_builder.compact import compact

        compact(Store(self.memory), purge=self.purge, runner=self.on.start())
        print_state(self.memory)
        return 0


@dataclass(frozen=True, kw_only=True)
class Merge:
    """Merge the parts of an index into one on-disk index that plain faiss opens. Run it again to go on."""

    memory: Annotated[str, Positional, arg(metavar="MEMORY")]
    """Folder of the memory."""
    keys: Literal["image", "text", "both"] = "both"
    """Which indexes; both: those there are."""
    on: OmitArgPrefixes[RunnerOptions] = field(default_factory=RunnerOptions)

    def run(self) -> int:
        from memory_builder.merge import merge
        from memory_builder.snapshots import read_snapshot

        store, runner = Store(self.memory), self.on.start()
        snapshot = read_snapshot(store)
        asked: tuple[Keys, ...] = (snapshot.modalities or ("image",)) if self.keys == "both" else (self.keys,)
        for keys in asked:
            merged = merge(store, keys, runner=runner)
            place = f"{store.root}/{snapshot.view(keys, store.root).index}/merged"
            print(f"{keys}: {merged.n_rows:,} rows, {merged.bytes / 1e6:,.1f} MB of inverted lists in {place}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Info:
    """Show what stands in a memory, also while it is being built."""

    memory: Annotated[str, Positional, arg(metavar="MEMORY")]
    """Folder of the memory."""
    json: bool = False
    """One JSON object."""
    plot: Path | None = None
    """Also draw the recall/work curves: a .png, .svg or .html file to write."""

    def run(self) -> int:
        from memory_builder.info import read_info

        store = Store(self.memory)
        if self.plot is not None:
            _plot_curves(store, self.plot)
        info = read_info(store)
        if self.json:
            print(json.dumps(asdict(info)))
            return 0
        shards = ", ".join(f"{n} {state}" for state, n in info.shards.items())
        print(f"{self.memory}: {info.rows:,} rows of width {info.d}, {info.model} ({info.fingerprint[:12]})")
        print(f"shards: {shards}; {info.input_bytes / 1e6:,.1f} MB read")
        print(f"deleted: {info.deleted:,} rows")
        print(f"rejects: {', '.join(f'{n} {reason}' for reason, n in info.rejects.items()) or 'none'}")
        if info.retries:
            print(f"storage: {info.retries:,} requests were made again")
        if info.pairs_per_s:
            left = f", {duration(info.time_left_s)} left" if info.time_left_s else ""
            print(f"speed: {info.pairs_per_s:,.0f} pairs/s over the latest shards{left}")
        print_indexes(info.indexes)
        print_curves(store)
        if self.plot is not None:
            print(f"curves drawn in {self.plot}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Recompute a memory's checksums; name what is missing, changed or foreign, and repair what can be."""

    memory: Annotated[str, Positional, arg(metavar="MEMORY")]
    """Folder of the memory."""
    repair: bool = False
    """Embed damaged shards again from their sources, and put the damaged files if every byte is as recorded."""
    model: str | None = None
    """For --repair: where the memory's model is now, if not where it was; weights must be the same."""
    pretrained: str | None = None
    """Pretrained tag or weights file of --model."""
    json: bool = False
    """One JSON object."""
    on: OmitArgPrefixes[RunnerOptions] = field(default_factory=RunnerOptions)

    def run(self) -> int:
        from memory_builder.verify import verify

        store, runner = Store(self.memory), self.on.start()
        found: dict[str, Any] = {}
        if self.repair:
            from memory_builder.repair import repair

            encoder = EncoderConfig(model=self.model, pretrained=self.pretrained) if self.model else None
            repaired = repair(store, runner, encoder=encoder)
            problems, found["repaired"] = [asdict(problem) for problem in repaired.problems], repaired.files
        else:
            problems = [asdict(problem) for problem in verify(store, runner)]
        if self.json:
            print(json.dumps({"ok": not problems, "problems": problems} | found))
            return FAILED if problems else 0
        for file in found.get("repaired", ()):
            print(f"repaired: {file}")
        if problems:
            print_table(f"{self.memory}: {len(problems)} problems", ("shard", "file", "problem"), problems)
        else:
            print(f"{self.memory}: every file is what its record says")
        return FAILED if problems else 0


@dataclass(frozen=True, kw_only=True)
class Export:
    """Hand a memory, or what was found in it, to other tools."""

    memory: Annotated[str, Positional, arg(metavar="MEMORY")]
    """Folder of the memory."""
    out: Annotated[str, Positional, arg(metavar="OUT")]
    """Folder to write."""
    format: Annotated[Literal["img2dataset", "clip-retrieval"], arg(name="as")]
    """img2dataset: the URLs and captions to fetch, as parquet. clip-retrieval: what its back end serves."""
    hits: Path | None = None
    """What search --json printed: only these rows. For img2dataset."""
    max_file: str = "4G"
    """An index larger than this becomes a folder with its lists on disk. For clip-retrieval."""
    on: OmitArgPrefixes[RunnerOptions] = field(default_factory=RunnerOptions)

    def run(self) -> int:
        from memory_builder.export import export_urls, read_hits
        from memory_builder.memory import Memory

        if self.format == "clip-retrieval":
            return self._for_clip_retrieval()
        ids = read_hits(self.hits) if self.hits else None
        n_written, n_without = export_urls(Memory.open(self.memory), self.out, ids)
        left_out = f"; {n_without:,} rows have no URL and were left out" if n_without else ""
        print(f"{n_written:,} URLs in {self.out}{left_out}")
        return 0

    def _for_clip_retrieval(self) -> int:
        from memory_builder.clip_retrieval import export_clip_retrieval
        from memory_builder.memory import Memory

        if self.hits is not None:
            raise UsageError("--hits is for --as img2dataset: a back end serves whole indexes")
        memory, runner = Memory.open(self.memory), self.on.start()
        served = export_clip_retrieval(memory, self.out, max_file=self.max_file, runner=runner)
        vectors = ", ".join(f"{n:,} {keys} vectors" for keys, n in served.indexes.items())
        print(f"{served.n_rows:,} rows, {vectors} in {self.out}")
        print(f"clip-retrieval back --indices_paths {Store(self.out).root}/indices_paths.json")
        return 0


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Build and ask a memory of 2,385 bundled icons with a small bundled model; write a report of it."""

    out: Path = Path("demo")
    """Folder for the sample, the memory and report.html."""

    def run(self) -> int:
        from memory_builder.demo import run_demo

        print(f"report: {run_demo(self.out)}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Submit:
    """Run a command on a Ray cluster: memory-builder submit --address http://HEAD:8265 -- embed …"""

    address: str
    """The cluster's job server, such as http://127.0.0.1:8265."""
    follow: bool = True
    """Print the job's output until it ends, and exit as it does."""
    working_dir: Path | None = None
    """Folder to upload for the job, where the cluster does not have what it needs."""
    command: Suppress[tuple[str, ...]] = ()

    def run(self) -> int:
        from cluster.submit import submit

        if not self.command:
            raise UsageError("nothing to submit: put the command behind --, as in submit --address URL -- info MEMORY")
        working_dir = str(self.working_dir) if self.working_dir else None
        code: int = submit(self.address, list(self.command), follow=self.follow, working_dir=working_dir)
        return code


Command = (
    Annotated[Demo, subcommand("demo")]
    | Annotated[Embed, subcommand("embed")]
    | Annotated[Import, subcommand("import")]
    | Annotated[Index, subcommand("index")]
    | Annotated[Search, subcommand("search")]
    | Annotated[Append, subcommand("append")]
    | Annotated[Delete, subcommand("delete")]
    | Annotated[Compact, subcommand("compact")]
    | Annotated[Merge, subcommand("merge")]
    | Annotated[Info, subcommand("info")]
    | Annotated[Verify, subcommand("verify")]
    | Annotated[Export, subcommand("export")]
    | Annotated[Submit, subcommand("submit")]
)

DESCRIPTION = "Build a searchable memory of image-text pairs and ask it. --debug shows tracebacks of errors."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    arguments, submitted = _split_submitted(arguments)
    debug = "--debug" in arguments
    try:
        command: Any = tyro.cli(
            Command,
            prog="memory-builder",
            description=DESCRIPTION,
            args=[argument for argument in arguments if argument != "--debug"],
        )
        if isinstance(command, Submit):
            command = replace(command, command=submitted)
        code: int = command.run()
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has gone; there is no one to tell
        return 0
    except Exception as error:
        if debug:
            raise
        return _tell(error)
    return code


def _split_submitted(arguments: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """What stands behind -- belongs to the submitted command."""
    at = arguments.index("--") if "--" in arguments else 0
    if "submit" not in arguments[:at]:
        return arguments, ()
    return arguments[:at], tuple(arguments[at + 1 :])


def _tell(error: Exception) -> int:
    known = isinstance(error, MemoryBuilderError)
    what = str(error) if known else f"{type(error).__name__}: {error} (--debug shows where)"
    print(f"error: {what}", file=sys.stderr)
    return error.exit_code if isinstance(error, MemoryBuilderError) else FAILED


def _read_vectors(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"--vector {path} is not a .npy file of numbers: {error}") from None


def _read_keys(keys: tuple[str, ...]) -> list[str]:
    """Keys as they were given, or those in the one file that was named."""
    if len(keys) == 1 and Path(keys[0]).is_file():
        return [line for line in Path(keys[0]).read_text().splitlines() if line]
    return list(keys)


def _plot_curves(store: Store, path: Path) -> None:
    from memory_builder.curve import read_curves
    from memory_builder.plot import check_suffix, plot

    check_suffix(path)
    picture = plot(read_curves(store), store.root, path.suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture)


if __name__ == "__main__":
    sys.exit(main())
