"""``RUN/eval/NAME.json``: a result of one method with its settings; its predictions are in a parquet file beside it."""

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
    """Metrics of one method on one set, with the settings that they depend on."""

    task: str
    method: str
    figures: Figures
    model: dict[str, str]
    """name, fingerprint."""
    dataset: dict[str, Any]
    """root, split, kind, digest, number of classes, templates."""
    config: dict[str, Any] = field(default_factory=dict)
    """Hyperparameters, and the set that they were chosen on."""
    memory: dict[str, Any] = field(default_factory=dict)
    """root, rows, snapshot, and memory rows by class where they were counted."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Controls and paired tests, each a plain dictionary."""
    asked: dict[str, Any] = field(default_factory=dict)
    """Arguments of the command that change the metrics and are not in ``name``: ``memory``, ``k``, ``dev`` …"""

    @property
    def name(self) -> str:
        """File name, unless a result with other arguments has it; see ``_file_name``."""
        shots = f"-{self.config['shots']}" if "shots" in self.config else ""
        root = sha256(self.dataset["root"].encode())[:6]  # two sets may be folders of one name
        return f"{self.task}-{self.method}{shots}-{self.dataset['name']}-{root}-{self.dataset['split']}".replace(
            "/", "_"
        )

    def line(self) -> dict[str, Any]:
        """The fields that ``--json`` prints."""
        labelled = {"method": self.method} if self.method != self.task else {}
        shots = {"shots": self.config["shots"]} if "shots" in self.config else {}
        figures = {name: part for name, part in asdict(self.figures).items() if name != "n_classes" and part != {}}
        return {"task": self.task, **labelled, **shots, **figures}


def describe_dataset(dataset: Dataset, n_captions: int = 0) -> dict[str, Any]:
    """The ``dataset`` field of a result; the number of captions only if there are any."""
    description = {
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
    return description | ({"n_captions": n_captions} if n_captions else {})


def describe_model(towers: "Towers") -> dict[str, str]:
    """The ``model`` field of a result."""
    return {"name": towers.name, "fingerprint": towers.fingerprint}


def describe_memory(memory: "Memory") -> dict[str, Any]:
    """The ``memory`` field of a result: root, rows and snapshot."""
    return {"root": memory.store.root, "rows": len(memory), "snapshot": memory.snapshot.number}


def write_result(run: Store, result: Result, predictions: pa.Table | None = None) -> None:
    """Write a result, replacing one with the same arguments.

    First the predictions are written under a name with their hash, then the record that holds this name, then the old
    predictions are removed. So a record and its predictions always match, wherever this is interrupted.
    """
    name = _file_name(run, result)
    old, new = _predictions_name(run, name), None
    if predictions is not None:
        data = parquet_bytes(predictions)
        new = f"{name}.{sha256(data)[:12]}.predictions.parquet"
        run.put(f"{FOLDER}/{new}", data)
    run.put(f"{FOLDER}/{name}.json", json.dumps(asdict(result) | {"predictions": new}, indent=1).encode())
    if old is not None and old != new and run.exists(f"{FOLDER}/{old}"):
        run.remove(f"{FOLDER}/{old}")


def _predictions_name(run: Store, name: str) -> str | None:
    """File name of a result's predictions; older results do not hold it, and use their own name."""
    own = re.escape(name)
    file = (run.read_sound_json(f"{FOLDER}/{name}.json") or {}).get("predictions", f"{name}.predictions.parquet")
    is_own = isinstance(file, str) and re.fullmatch(rf"{own}([.][0-9a-f]{{12}})?[.]predictions[.]parquet", file)
    return str(file) if is_own else None


def _file_name(run: Store, result: Result) -> str:
    """File name of a result: that of a file with equal arguments; arguments missing from older files count as equal."""
    beside = f"{result.name}-{content_hash(result.asked)[:6]}"
    recorded = recorded_settings(run.read_sound_json(f"{FOLDER}/{result.name}.json") or {})
    is_own = all(recorded.get(name, value) == value for name, value in result.asked.items())
    return result.name if is_own and not run.exists(f"{FOLDER}/{beside}.json") else beside


def recorded_settings(result: dict[str, Any]) -> dict[str, Any]:
    """The arguments that a result was made with; older results hold fewer."""
    try:
        memory = {"memory": result["memory"]["root"]} if result.get("memory") else {}
        return {**memory, **result.get("config", {}), **result.get("asked", {})}
    except (TypeError, LookupError):  # a damaged record, which is replaced
        return {}


def predictions_table(keys: Sequence[str], rounds: Sequence[Answers], **columns: Any) -> pa.Table:
    """One row for each picture: key, label, and for each seed the rank of the true class and the top predictions.

    Args:
        keys: n picture keys.
        rounds: the predictions of each seed, on the same pictures.
        columns: further columns of n values.
    """
    table = {"key": list(keys), "label": rounds[0].labels}
    for seed, answers in enumerate(rounds):
        table[f"rank_{seed}"] = answers.rank
        table[f"top_{seed}"] = pa.array(list(answers.top), pa.list_(pa.int64()))
    return pa.table(table | columns)


def read_results(run: Store) -> list[dict[str, Any]]:
    """All results of a run, sorted by file name.

    Raises:
        CorruptMemoryError: a record lacks fields that every version writes.
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
    """The predictions of a result, or None if it has none."""
    file = _predictions_name(run, name)
    return read_parquet(run.read(f"{FOLDER}/{file}")) if file and run.exists(f"{FOLDER}/{file}") else None
