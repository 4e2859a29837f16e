"""An evaluation begun: its model and sets loaded, its run's folder claimed for that model."""

from dataclasses import dataclass

import numpy as np

from memory_builder.errors import ConfigMismatchError, UsageError
from memory_builder.storage.store import Store
from trainer.evaluate.config import Setting
from trainer.evaluate.numbers.arrays import Floats
from trainer.evaluate.results import read_results
from trainer.evaluate.sets.datasets import open_dataset
from trainer.evaluate.sets.features import Embedded, embed_dataset
from trainer.evaluate.sets.towers import Towers, load_towers


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """What every task starts from. Use ``open_setting``."""

    setting: Setting
    towers: Towers
    run: Store
    features: Store
    """Where embeddings of sets are kept."""
    test: Embedded
    dev: Embedded | None

    @property
    def dev_name(self) -> str | None:
        """Where settings are chosen; None: nowhere."""
        return None if self.dev is None else f"{self.dev.dataset.root.resolve()} {self.dev.dataset.split}"

    def classifier(self, embedded: Embedded) -> Floats:
        """f32[c, d] text embeddings of a set's classes."""
        return self.towers.classifier(embedded.dataset.classes, embedded.dataset.templates)

    def train(self, embedded: Embedded) -> Embedded:
        """The pictures to learn from that belong to a set.

        Raises:
            SourceError: it has no such split.
            UsageError: a picture of it is among those to be answered, or among those that are measured.
        """
        if embedded.dataset.split == self.setting.train_split:
            raise UsageError(
                f"{embedded.dataset.root}: --train-split {self.setting.train_split} is the split that is to be "
                "answered: name another to learn from"
            )
        dataset = open_dataset(embedded.dataset.root, self.setting.train_split)
        if dataset.labelled_by != embedded.dataset.labelled_by:
            raise UsageError(
                f"{dataset.root}: the classes of {dataset.split} and {embedded.dataset.split} differ: a label must "
                "mean the same in both"
            )
        train = embed_dataset(dataset, self.towers, self.features, self.setting.batch_size)
        for asked in (embedded, self.test):  # what is chosen on dev must not have seen what is measured either
            _refuse_shared(f"--train-split {dataset.split}", train, asked)
        return train


def open_setting(setting: Setting) -> Opened:
    """Load the model, embed the sets.

    Raises:
        EncoderError, SourceError: the model or a set cannot be loaded.
        UsageError: pictures are in both --dev and --dataset.
        ConfigMismatchError: the run's folder holds results of another model.
    """
    test, dev = open_dataset(setting.dataset, setting.split), None
    if setting.dev is not None:
        dev = open_dataset(setting.dev, setting.dev_split)
        if dev.kind != test.kind:
            raise UsageError(f"--dev {dev.root} is a {dev.kind} set, --dataset {test.root} a {test.kind} one")
    towers = load_towers(setting.encoder)
    run = Store(setting.out)
    others = {result["model"]["fingerprint"] for result in read_results(run)} - {towers.fingerprint}
    if others:
        raise ConfigMismatchError(
            f"{run.root} holds results of a model with fingerprint {min(others)[:12]}, this one has "
            f"{towers.fingerprint[:12]}: name another --out"
        )
    features = Store(setting.features or setting.out)
    embedded = embed_dataset(test, towers, features, setting.batch_size)
    embedded_dev = None if dev is None else embed_dataset(dev, towers, features, setting.batch_size)
    if embedded_dev is not None:
        _refuse_shared("--dev", embedded_dev, embedded)
    return Opened(setting=setting, towers=towers, run=run, features=features, test=embedded, dev=embedded_dev)


def require(opened: Opened, *kinds: str) -> None:
    """Refuse a set that the task cannot be asked about."""
    kind = opened.test.dataset.kind
    if kind not in kinds:
        raise UsageError(
            f"--dataset {opened.test.dataset.root} is a {kind} set, as its dataset_type.txt says; this task is for "
            f"{' or '.join(kinds)}"
        )


def _refuse_shared(what: str, other: Embedded, measured: Embedded) -> None:
    hashes = np.array(measured.examples["sha256"].to_pylist())
    shared = np.isin(hashes, other.examples["sha256"].to_pylist())
    if shared.any():
        raise UsageError(
            f"{what}: {shared.sum():,} of the {len(hashes):,} pictures of {measured.dataset.root} "
            f"{measured.dataset.split} are in {other.dataset.root} {other.dataset.split} too, such as "
            f"{measured.keys[int(shared.argmax())]}: take them out of one of them"
        )
