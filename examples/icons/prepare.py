"""Render the icons of `@iconify/json` into webdataset shards of image-text pairs.

    uv run python examples/icons/prepare.py --out ~/icons/64
    uv run python examples/icons/prepare.py --out ~/icons/small --sets mdi noto --max-pairs 2000

Every pair is `KEY.png`, `KEY.txt` and `KEY.json` with KEY = `{set}--{name}`. The bytes depend on the selection, the
seed, the size and the versions recorded in `icons.json`, and not on the number of workers.
"""

import io
import json
import random
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from command import run
from iconify import PACKAGE, VERSION, Icon, IconsError, IconSet, icon_names, open_package, read_icons, read_sets
from render import RenderError, encode_png, render_icon


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepare:
    """Render the icons of the npm package @iconify/json into shards of image-text pairs."""

    out: Path
    """Folder of the shards; a rerun into it finishes what is missing."""
    size: int = 64
    """Width and height of the pictures, in pixels."""
    seed: int = 0
    """Seed of the colours, and of the sample that --max-pairs draws."""
    sets: tuple[str, ...] = ()
    """Prefixes of the sets to take, such as mdi and noto; all of them if none is given."""
    licences: tuple[str, ...] = ()
    """SPDX ids of the licences to take, such as MIT and CC0-1.0; all of them if none is given."""
    max_pairs: int | None = None
    """Draw a uniform sample of so many icons from the selection."""
    pairs_per_shard: int = 5000
    """Icons planned for a shard; those that fail make it smaller."""
    source: Path | None = None
    """The package's tgz or its unpacked folder; npm fetches it otherwise."""
    cache: Path | None = None
    """Folder the package is unpacked into; beside --out otherwise."""
    workers: int = 2
    """Processes; 1 renders in this one."""

    def __post_init__(self) -> None:
        for field in ("size", "pairs_per_shard", "workers"):
            if getattr(self, field) < 1:
                raise IconsError(f"--{field.replace('_', '-')} is {getattr(self, field)}: give 1 or more")
        if self.max_pairs is not None and self.max_pairs < 1:
            raise IconsError(f"--max-pairs is {self.max_pairs}: give 1 or more, or leave it out for all")


class Shard(NamedTuple):
    """A unit of work: the icons, as (set, name), meant for one tar."""

    ordinal: int
    icons: list[tuple[str, str]]


class Failure(NamedTuple):
    """An icon that became no pair; `reason` is countable, `detail` is what the renderer said."""

    key: str
    reason: str
    detail: str


def key_of(icon: Icon) -> str:
    """Return the pair's key: unique, as neither part holds a double dash."""
    return f"{icon.set}--{icon.name}"


def caption_of(name: str) -> str:
    """Return an icon's name as words: `clock-outline` -> `clock outline`."""
    return name.replace("-", " ").replace("_", " ")


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a member without times or owners, so that the same content has the same bytes."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def write_tar(
    stream: BinaryIO, icons: Iterable[Icon], *, sets: Mapping[str, IconSet], size: int, seed: int
) -> tuple[Counter[str], list[Failure]]:
    """Write the icons' pairs to a tar; return the pairs of each set, and what failed."""
    pairs: Counter[str] = Counter()
    failures: list[Failure] = []
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for icon in icons:
            try:
                png = encode_png(render_icon(icon, size=size, seed=seed))
            except RenderError as error:
                failures.append(Failure(key_of(icon), *error.args))
                continue
            about = describe(icon, sets[icon.set], size)
            for suffix, data in (("png", png), ("txt", caption_of(icon.name).encode()), ("json", about)):
                add(tar, f"{key_of(icon)}.{suffix}", data)
            pairs[icon.set] += 1
    return pairs, failures


def describe(icon: Icon, icon_set: IconSet, size: int) -> bytes:
    """Return the pair's JSON."""
    about = {
        "key": key_of(icon),
        "set": icon.set,
        "set_name": icon_set.name,
        "name": icon.name,
        "licence": icon_set.licence,
        "licence_spdx": icon_set.licence_spdx,
        "category": icon_set.category,
        "palette": not icon.mono,
        "width": size,
        "height": size,
    }
    return json.dumps(about, ensure_ascii=False).encode()


def select_sets(sets: Mapping[str, IconSet], config: Prepare) -> dict[str, IconSet]:
    """Return the sets the config names."""
    licences = {s.licence_spdx for s in sets.values()}
    for flag, wanted, known in (("sets", config.sets, set(sets)), ("licences", config.licences, licences)):
        if unknown := sorted(set(wanted) - known):
            raise IconsError(
                f"--{flag}: {PACKAGE}@{VERSION} has no {', '.join(unknown)}; it has {', '.join(sorted(known))}"
            )
    selected = {
        prefix: s
        for prefix, s in sets.items()
        if (not config.sets or prefix in config.sets) and (not config.licences or s.licence_spdx in config.licences)
    }
    if not selected:
        raise IconsError("none of --sets is under one of --licences: ask for fewer of the two")
    return selected


def plan_shards(names: Mapping[str, Sequence[str]], config: Prepare) -> list[Shard]:
    """Deal the icons out to shards, a set's icons next to each other so that a shard needs few of the set files."""
    icons = [(prefix, name) for prefix in names for name in names[prefix]]
    if config.max_pairs is not None and config.max_pairs < len(icons):
        icons = sorted(random.Random(config.seed).sample(icons, config.max_pairs))
    step = config.pairs_per_shard
    return [Shard(i, icons[start : start + step]) for i, start in enumerate(range(0, len(icons), step))]


def write_shard(shard: Shard, *, package: Path, sets: Mapping[str, IconSet], config: Prepare) -> dict[str, Any]:
    """Render one shard, the tar first and its record last: a tar without a record does not count."""
    tar = tar_path(config.out, shard)
    loaded = ((read_icons(package, prefix), list(group)) for prefix, group in groupby(shard.icons, lambda i: i[0]))
    icons = (by_name[name] for by_name, group in loaded for _, name in group)
    scratch = tar.with_suffix(".tar.tmp")
    with scratch.open("wb") as stream:
        pairs, failures = write_tar(stream, icons, sets=sets, size=config.size, seed=config.seed)
    scratch.replace(tar)
    record = {"pairs": pairs, "bytes": tar.stat().st_size, "failures": failures}
    put_json(record_path(config.out, shard), record)
    return record


def tar_path(out: Path, shard: Shard) -> Path:
    """Return where a shard's pairs lie."""
    return out / f"{shard.ordinal:05d}.tar"


def record_path(out: Path, shard: Shard) -> Path:
    """Return where a shard's record lies."""
    return out / "commits" / f"{shard.ordinal:05d}.json"


def done(out: Path, shard: Shard) -> bool:
    """Return whether a shard is complete."""
    return record_path(out, shard).exists() and tar_path(out, shard).exists()


def put_json(path: Path, value: object) -> None:
    """Write a JSON file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".json.tmp")
    scratch.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    scratch.replace(path)


def settle(config: Prepare) -> dict[str, Any]:
    """Return what decides the bytes, and record it in `icons.json`, or refuse a folder that holds something else."""
    settled: dict[str, Any] = {
        "package": f"{PACKAGE}@{VERSION}",
        "renderers": {name: version(name) for name in ("resvg-py", "pillow")},
        "size": config.size,
        "seed": config.seed,
        "sets": sorted(set(config.sets)),
        "licences": sorted(set(config.licences)),
        "max_pairs": config.max_pairs,
        "pairs_per_shard": config.pairs_per_shard,
    }
    path = config.out / "icons.json"
    if not path.exists():
        put_json(path, {"config": settled})
    elif (found := json.loads(path.read_bytes())["config"]) != settled:
        raise IconsError(
            f"{path} was made with another config:\n  there: {json.dumps(found)}\n  asked: {json.dumps(settled)}\n"
            f"give another --out, ask for the same, or remove {config.out}"
        )
    return settled


def report(settled: dict[str, Any], shards: Sequence[Shard], sets: Mapping[str, IconSet], out: Path) -> dict[str, Any]:
    """Fold the shards' records into what `icons.json` says of a finished folder."""
    records = [json.loads(record_path(out, shard).read_bytes()) for shard in shards]
    pairs: Counter[str] = sum((Counter(record["pairs"]) for record in records), Counter())
    failures = [Failure(*failure) for record in records for failure in record["failures"]]
    return {
        "config": settled,
        "shards": len(shards),
        "pairs": pairs.total(),
        "bytes": sum(record["bytes"] for record in records),
        "reasons": dict(sorted(Counter(failure.reason for failure in failures).items())),
        "failures": [failure._asdict() for failure in failures],
        "sets": {prefix: {"pairs": n, **asdict(sets[prefix])} for prefix, n in sorted(pairs.items())},
    }


@contextmanager
def pool(workers: int) -> Iterator[Any]:
    """Give an ordered `map` over so many processes; one worker is this process."""
    if workers == 1:
        yield map
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as processes:
        yield processes.map


def prepare(config: Prepare) -> str:
    """Do the whole of it and return the summary line."""
    started = time.perf_counter()
    package = open_package(config.source, config.cache or config.out.resolve().parent)
    sets = select_sets(read_sets(package), config)
    settled = settle(config)
    written = 0
    with pool(config.workers) as map_:
        names = dict(zip(sets, map_(partial(icon_names, package), sets), strict=True))
        shards = plan_shards(names, config)
        pending = [shard for shard in shards if not done(config.out, shard)]
        print(f"{len(shards)} shards planned, {len(shards) - len(pending)} complete already", file=sys.stderr)
        work = partial(write_shard, package=package, sets=sets, config=config)
        for shard, record in zip(pending, map_(work, pending), strict=True):
            pairs = sum(record["pairs"].values())
            written += pairs
            rate = written / (time.perf_counter() - started)
            print(f"{tar_path(config.out, shard)}: {pairs} pairs, {rate:.0f} pairs/s", file=sys.stderr)
    whole = report(settled, shards, sets, config.out)
    put_json(config.out / "icons.json", whole)
    seconds = time.perf_counter() - started
    reasons = ", ".join(f"{n} {reason}" for reason, n in whole["reasons"].items()) or "none"
    return (
        f"{whole['pairs']} pairs in {whole['shards']} shards, {whole['bytes'] / 1e6:.1f} MB in {config.out}; "
        f"failed: {reasons}; {written} written in {seconds:.1f} s, {written / seconds:.0f} pairs/s"
    )


if __name__ == "__main__":
    sys.exit(run(prepare, Prepare, __doc__))
