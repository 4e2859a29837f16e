"""Results of runs as the report needs them: grouped by set, each with its difference from zero-shot."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from memory_builder.errors import UsageError
from memory_builder.storage.store import Store
from trainer.evaluate.numbers.arrays import Labels
from trainer.evaluate.numbers.intervals import Difference, Reals, paired_difference
from trainer.evaluate.numbers.metrics import class_sums
from trainer.evaluate.results import read_predictions, read_results, recorded_settings

METHODS = ("zero-shot", "knn", "priming", "cache", "wise-head", "mean-fusion", "knn-name", "name-centroid", "pixel")
"""In the order of the report; others follow."""
LEARNT = ("linear-probe", "few-shot")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One result of one run."""

    run: Store
    result: dict[str, Any]
    run_name: str
    """Short, distinct; empty where there is only one run."""
    difference: str = ""
    """What it was asked for, as far as it differs from others of the same method."""

    @property
    def task(self) -> str:
        return str(self.result["task"])

    @property
    def method(self) -> str:
        return str(self.result["method"])

    @property
    def shots(self) -> str | None:
        shots = self.result["config"].get("shots")
        return None if shots is None else str(shots)

    @property
    def label(self) -> str:
        shots = f", {self.shots} {'shot' if self.shots == '1' else 'shots'}" if self.shots else ""
        return self._label(shots)

    @property
    def curve(self) -> str:
        """The label of all numbers of shots together."""
        return self._label("")

    @cached_property
    def predictions(self) -> pa.Table | None:
        """A row a picture; None where a result has none."""
        return read_predictions(self.run, self.result["file"])

    @property
    def model(self) -> str:
        """The fingerprint of its model."""
        return str(self.result["model"]["fingerprint"])

    @property
    def is_zero_shot(self) -> bool:
        """Whether it is zero-shot of a classification."""
        return self.method == "zero-shot" and self.labels is not None

    @property
    def memory_root(self) -> str:
        """The memory it rests on; empty where it needs none."""
        return str(self.result["memory"].get("root", ""))

    @property
    def has_reasons(self) -> bool:
        """Whether it says which rows of a memory its answers rest on."""
        return self.predictions is not None and "reasons" in self.predictions.column_names

    @property
    def labels(self) -> Labels | None:
        """i64[n] the truth of a classification."""
        table = self.predictions
        return None if table is None or "label" not in table.column_names else np.array(table["label"])

    def _label(self, shots: str) -> str:
        difference = f", {self.difference}" if self.difference else ""
        return f"{self.method}{shots}{difference}" + (f" ({self.run_name})" if self.run_name else "")

    def right(self) -> Reals:
        """f64[n] the share of seeds in which each picture is right."""
        table = self.predictions
        if table is None:
            raise ValueError(f"{self.label} has no answers")
        ranks = [name for name in table.column_names if name.startswith("rank_")]
        shares: Reals = np.mean([np.array(table[name]) == 0 for name in ranks], axis=0)
        return shares


@dataclass(frozen=True, kw_only=True)
class Group:
    """All results on one split of one set."""

    dataset: dict[str, Any]
    entries: tuple[Entry, ...]
    zero_shot: Entry | None = None
    """What the tables compare with: zero-shot of the first run that has it, whatever its model."""

    @property
    def title(self) -> str:
        return f"{self.dataset['name']}, {self.dataset['split']}"

    @property
    def n_models(self) -> int:
        return len({entry.model for entry in self.entries})

    def zero_shot_of(self, entry: Entry) -> Entry | None:
        """What a result's own model says without help: zero-shot of its run, or else of another run of that model."""
        alike = [other for other in self.entries if other.is_zero_shot and other.model == entry.model]
        return min(alike, key=lambda other: other.run.root != entry.run.root, default=None)

    def of(self, *tasks: str) -> list[Entry]:
        """The results of these tasks; zero-shot once for each run, though several tasks measure it."""
        chosen, seen = [], set()
        for entry in self.entries:
            again = entry.method == "zero-shot" and (entry.run.root, entry.label) in seen
            if entry.task in tasks and not again:
                seen.add((entry.run.root, entry.label))
                chosen.append(entry)
        return chosen


def read_groups(runs: Sequence[str]) -> list[Group]:
    """The results of runs by set, in the order of the runs.

    Raises:
        UsageError: a run holds no result.
        CorruptMemoryError: a result cannot be read.
    """
    groups: dict[str, list[Entry]] = {}
    stores = [Store(root) for root in dict.fromkeys(runs)]
    names = shortened([run.root for run in stores]) if len(stores) > 1 else [""]
    for run, name in zip(stores, names, strict=True):
        results = read_results(run)
        if not results:
            raise UsageError(f"{run.root} holds no result: run memory-builder evaluate with --out {run.root} first")
        for result in results:
            entry = Entry(run=run, result=result, run_name=name)
            groups.setdefault(result["dataset"]["digest"], []).append(entry)
    return [_group(_told_apart(entries)) for entries in groups.values()]


def _group(entries: list[Entry]) -> Group:
    """Results in the order of the runs → in that of the report."""
    zero_shot = next((entry for entry in entries if entry.is_zero_shot), None)
    return Group(dataset=entries[0].result["dataset"], entries=_ordered(entries), zero_shot=zero_shot)


def _told_apart(entries: list[Entry]) -> list[Entry]:
    """Of several with one label, each says what it was asked for that the others were not."""
    return [
        replace(entry, difference=_difference(entry, [other for other in entries if other.label == entry.label]))
        for entry in entries
    ]


def _difference(entry: Entry, alike: Sequence[Entry]) -> str:
    settings, own = [recorded_settings(other.result) for other in alike], recorded_settings(entry.result)
    names = dict.fromkeys(name for other in alike for name in other.result.get("asked", {}))
    differences = []
    for name in names:
        values = list(dict.fromkeys(_shown(one[name]) for one in settings if name in one))
        if len(values) > 1 and name in own:
            differences.append(f"{name.replace('_', ' ')} {shortened(values)[values.index(_shown(own[name]))]}")
    return ", ".join(differences)


def _shown(value: object) -> str:
    return "none" if value is None else str(value)


def shortened(paths: Sequence[str]) -> list[str]:
    """Of distinct paths, or what else they are, so many last parts that they are told apart."""
    parts = [path.rstrip("/").split("/") for path in paths]
    for n_last in range(1, max(map(len, parts), default=0) + 1):
        short = ["/".join(some[-n_last:]) for some in parts]
        if len(set(short)) == len(short):
            return short
    return list(paths)


def _ordered(entries: list[Entry]) -> tuple[Entry, ...]:
    """Zero-shot first, baselines, controls, then what learns by its number of shots."""

    def place(entry: Entry) -> tuple[int, str, float]:
        shots = entry.shots or "0"
        known = METHODS.index(entry.method) if entry.method in METHODS else len(METHODS)
        return known, entry.task, float(shots) if shots.isdecimal() else np.inf

    return tuple(sorted(entries, key=place))


def against(entry: Entry, other: Entry) -> Difference | None:
    """The paired difference of top-1; None where the two did not answer the same pictures."""
    labels = entry.labels
    if entry is other or labels is None or entry.predictions is None or other.predictions is None:
        return None
    if entry.predictions["key"] != other.predictions["key"]:
        return None
    return paired_difference(class_sums(entry.right(), labels), class_sums(other.right(), labels))
