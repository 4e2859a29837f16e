"""Make an evaluation set of OVEN's annotations and pictures: CLIP_benchmark's layout, for `memory-builder evaluate`.

    uv run python examples/oven.py --annotations oven_entity_val.jsonl --images oven_images --out oven

Each picture is asked about by itself: the question beside it is not used. The classes are the entities of the
annotations; `--entities` adds others to choose wrongly, up to all six million of Wikipedia as far as memory allows: at
512 dimensions those need about 16 GB for `evaluate zero-shot` and 32 GB for `evaluate reco`. An entity's tier is `seen`
or `unseen`, by its `data_split`; OVEN's score of a split is the harmonic mean of the two.
"""

import io
import json
import sys
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

PER_TAR = 10_000
NEEDED = ("data_id", "image_id", "entity_id", "entity_text", "data_split")


class OvenError(Exception):
    """What is wrong with the files, and what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Oven:
    """Make an evaluation set of OVEN's annotations and pictures."""

    annotations: Path
    """JSONL, a question a line: data_id, image_id, entity_id, entity_text, data_split."""
    images: Path
    """Folder with NN/oven_NNNNNNNN.jpg."""
    out: Path
    """Folder to write."""
    entities: Path | None = None
    """JSONL with further entities: id or wikidata_id, content or wikipedia_title."""


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSONL file."""
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise OvenError(f"{path}, line {number}: no JSON ({error}): fetch the file again") from None


def read_annotations(path: Path) -> list[dict[str, Any]]:
    """Return the questions, each with all that is needed."""
    rows = list(read_lines(path))
    for number, row in enumerate(rows, 1):
        if missing := [name for name in NEEDED if row.get(name) in (None, "")]:
            raise OvenError(
                f"{path}, line {number} lacks {', '.join(missing)}: the test split has no answers, take val"
            )
    return rows


def classes_of(rows: list[dict[str, Any]], more: Path | None) -> dict[str, tuple[str, str]]:
    """Return entity id → (name, tier): those asked about, then the others."""
    classes = {row["entity_id"]: (row["entity_text"], row["data_split"].rpartition("_")[2]) for row in rows}
    for row in read_lines(more) if more else ():
        entity, name = row.get("id") or row.get("wikidata_id"), row.get("content") or row.get("wikipedia_title")
        if not entity or not name:
            raise OvenError(f"{more}: an entity without id or name: {json.dumps(row)[:100]}")
        classes.setdefault(entity, (name, "not asked about"))
    return classes


def picture(images: Path, image_id: str) -> Path | None:
    """Return a picture's file, if it is there."""
    return next((images / image_id.rpartition("_")[2][:2]).glob(f"{image_id}.*"), None)


def write_tars(folder: Path, samples: Sequence[tuple[str, Path, int]]) -> None:
    """Write samples, (name, picture, label), into tars of a split."""
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(samples), PER_TAR)
    for number, start in enumerate(starts):
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for name, path, label in samples[start : start + PER_TAR]:
                suffix = path.suffix.lower().removeprefix(".")
                for kind, data in ((suffix, path.read_bytes()), ("cls", str(label).encode())):
                    member = tarfile.TarInfo(f"{name}.{kind}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    (folder / "nshards.txt").write_text(str(len(starts)))


def convert(config: Oven) -> str:
    """Do the whole of it, and return the summary line."""
    rows = read_annotations(config.annotations)
    classes = classes_of(rows, config.entities)
    labels = {entity: label for label, entity in enumerate(classes)}
    found = [(row["data_id"], picture(config.images, row["image_id"]), labels[row["entity_id"]]) for row in rows]
    samples = [(name, path, label) for name, path, label in found if path]
    if not samples:
        raise OvenError(
            f"{config.images} has none of the {len(rows):,} pictures: expected {rows[0]['image_id']}.jpg in a folder "
            "named by the first two digits of its number"
        )
    write_tars(config.out / "test", samples)
    files = {
        "classnames.txt": [name.replace("\n", " ") for name, _ in classes.values()],
        "tiers.txt": [tier for _, tier in classes.values()],
        "zeroshot_classification_templates.txt": ["a photo of {c}."],
        "dataset_type.txt": ["classification"],
    }
    for name, lines in files.items():
        (config.out / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    missing = len(rows) - len(samples)
    gone = f", {missing:,} left out as their picture is missing" if missing else ""
    return f"{len(samples):,} questions about {len(classes):,} entities in {config.out}{gone}"


def main() -> int:
    """Run the command; 0 is success, 2 wrong input."""
    try:
        print(convert(tyro.cli(Oven, description=__doc__)))
    except (OvenError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
