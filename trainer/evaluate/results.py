"""``RUN/eval/NAME.json``: one result of one method with all it rests on, and its answers beside it for paired tests."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from memory_builder.errors import CorruptMemoryError
from memory_builder.storage.formats import parquet_bytes, read_parquet
from memory_builder.storage.records import content_hash
from memory_builder.storage.store import Store, sha256
from trainer.evaluate.numbers.metrics import Answers, Figures
from trainer.evaluate.sets.datasets import Dataset

if TYPE_CHECKING:
    from memory_builder.memory import Memory
    from trainer.evaluate.sets.towers import Towers  # open_clip takes seconds to import

FOLDER = "eval"


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One line of the output and one file of the run."""

    task: str
    method: str
    figures: Figures
    model: dict[str, str]
    """name, fingerprint."""
    dataset: dict[str, Any]
    """root, split, kind, digest, number of classes, templates."""
    config: dict[str, Any] = field(default_factory=dict)
    """Hyperparameters, and what they were chosen on."""
    memory: dict[str, Any] = field(default_factory=dict)
    """root, rows, snapshot, and memory rows by class where they were counted."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Controls and tests that belong to this result: each a plain dictionary."""
    asked: dict[str, Any] = field(default_factory=dict)
    """What the command named that changes the figures and is not in ``name``: ``memory``, ``k``, ``dev`` and so on."""

    @property
    def name(self) -> str:
        """The file's name, unless it is another command's; see ``write_result``."""
        shots = f"-{self.config['shots']}" if "shots" in self.config else ""
        place = sha256(self.dataset["root"].encode())[:6]  # two sets may be folders of one name
        return f"{self.task}-{self.method}{shots}-{self.dataset['name']}-{place}-{self.dataset['split']}".replace(
            "/", "_"
        )

    def line(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        labelled = {"method": self.method} if self.method != self.task else {}
        shots = {"shots": self.config["shots"]} if "shots" in self.config else {}
        figures = {name: part for name, part in asdict(self.figures).items() if name != "n_classes" and part != {}}
        return {"task": self.task, **labelled, **shots, **figures}


def describe_dataset(dataset: Dataset, n_captions: int = 0) -> dict[str, Any]:
    """What a result says of the set it was measured on; the number of captions only where there are any."""
    told = {
        "name": dataset.root.resolve().name,
        "root": str(dataset.root.resolve()),
        "split": dataset.split,
        "kind": dataset.kind,
        "digest": dataset.digest(),
        "n_classes": len(dataset.classes),
        "classes": list(dataset.classes),
        "templates": list(dataset.templates),
        "tiers": list(dataset.tiers),
    }
    return told | ({"n_captions": n_captions} if n_captions else {})


def describe_model(towers: "Towers") -> dict[str, str]:
    """What a result says of its model."""
    return {"name": towers.name, "fingerprint": towers.fingerprint}


def describe_memory(memory: "Memory") -> dict[str, Any]:
    """What a result says of the memory it rests on, and of its state then."""
    return {"root": memory.store.root, "rows": len(memory), "snapshot": memory.snapshot.number}


def write_result(run: Store, result: Result, predictions: pa.Table | None = None) -> None:
    """Write over what the same command wrote, beside what another did.

    Predictions go under a name of their own, which the record, written next, tells; only then do those before them go.
    So a record stands beside its own answers wherever this breaks off.
    """
    name = _own_name(run, result)
    old, new = _predictions_name(run, name), None
    if predictions is not None:
        data = parquet_bytes(predictions)
        new = f"{name}.{sha256(data)[:12]}.predictions.parquet"
        run.put(f"{FOLDER}/{new}", data)
    run.put(f"{FOLDER}/{name}.json", json.dumps(asdict(result) | {"predictions": new}, indent=1).encode())
    if old is not None and old != new and run.exists(f"{FOLDER}/{old}"):
        run.remove(f"{FOLDER}/{old}")


def _predictions_name(run: Store, name: str) -> str | None:
    """What a record calls its predictions; older ones do not say, and have them under their own name."""
    own = re.escape(name)
    told = (run.read_sound_json(f"{FOLDER}/{name}.json") or {}).get("predictions", f"{name}.predictions.parquet")
    is_own = isinstance(told, str) and re.fullmatch(rf"{own}([.][0-9a-f]{{12}})?[.]predictions[.]parquet", told)
    return str(told) if is_own else None


def _own_name(run: Store, result: Result) -> str:
    """Where it lies already, or goes: what an older record does not know of itself is taken to be as asked."""
    beside = f"{result.name}-{content_hash(result.asked)[:6]}"
    told = told_of(run.read_sound_json(f"{FOLDER}/{result.name}.json") or {})
    is_own = all(told.get(name, value) == value for name, value in result.asked.items())
    return result.name if is_own and not run.exists(f"{FOLDER}/{beside}.json") else beside


def told_of(result: dict[str, Any]) -> dict[str, Any]:
    """What a record says it was asked for; older ones know less."""
    try:
        memory = {"memory": result["memory"]["root"]} if result.get("memory") else {}
        return {**memory, **result.get("config", {}), **result.get("asked", {})}
    except (TypeError, LookupError):  # a damaged record, which is written over
        return {}


def predictions_table(keys: Sequence[str], rounds: Sequence[Answers], **columns: Any) -> pa.Table:
    """A row a picture: key, label, and for every seed the rank of the right class and the first answers.

    Args:
        keys: n keys.
        rounds: the answers of each seed, on the same pictures.
        columns: further columns of n values.
    """
    table = {"key": list(keys), "label": rounds[0].labels}
    for seed, found in enumerate(rounds):
        table[f"rank_{seed}"] = found.rank
        table[f"top_{seed}"] = pa.array(list(found.top), pa.list_(pa.int64()))
    return pa.table(table | columns)


def read_results(run: Store) -> list[dict[str, Any]]:
    """All results of a run, by name.

    Raises:
        CorruptMemoryError: a record is not what this version writes.
    """
    results = []
    for name in sorted(run.list(FOLDER)):
        if not name.endswith(".json"):
            continue
        result = run.read_json(f"{FOLDER}/{name}")
        if result is None or not {"task", "method", "figures", "dataset"} <= result.keys():
            raise CorruptMemoryError(f"{run.root}/{FOLDER}/{name} is no result of evaluate: run it again")
        results.append(result | {"file": name.removesuffix(".json"), "run": run.root})
    return results


def read_predictions(run: Store, name: str) -> pa.Table | None:
    """The answers beside a result, or None if it has none."""
    file = _predictions_name(run, name)
    return read_parquet(run.read(f"{FOLDER}/{file}")) if file and run.exists(f"{FOLDER}/{file}") else None
