"""The common start of every evaluation: load the model, embed the sets, refuse results of another model."""

from dataclasses import dataclass

import numpy as np

from memory_builder.errors import ConfigMismatchError, UsageError
from memory_builder.storage.store import Store
from trainer.evaluate.config import EvalConfig
from trainer.evaluate.numbers.arrays import Floats
from trainer.evaluate.results import read_results
from trainer.evaluate.sets.datasets import open_dataset
from trainer.evaluate.sets.features import Embedded, embed_dataset
from trainer.evaluate.sets.towers import Towers, load_towers


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalContext:
    """A loaded model with its embedded sets. Use ``open_context``."""

    config: EvalConfig
    towers: Towers
    run: Store
    """Folder of the results."""
    features: Store
    """Folder of the embedded sets."""
    test: Embedded
    dev: Embedded | None

    @property
    def dev_name(self) -> str | None:
        """Folder and split of the dev set, or None without one."""
        return None if self.dev is None else f"{self.dev.dataset.root.resolve()} {self.dev.dataset.split}"

    def classifier(self, embedded: Embedded) -> Floats:
        """f32[c, d] text embeddings of a set's classes."""
        return self.towers.classifier(embedded.dataset.classes, embedded.dataset.templates)

    def train(self, embedded: Embedded) -> Embedded:
        """Embed the train split of a set.

        Raises:
            SourceError: the set has no such split.
            UsageError: the split shares a picture with ``embedded`` or with the test set.
        """
        if embedded.dataset.split == self.config.train_split:
            raise UsageError(
                f"{embedded.dataset.root}: --train-split {self.config.train_split} is the split that is evaluated: "
                "name another to train on"
            )
        dataset = open_dataset(embedded.dataset.root, self.config.train_split)
        if dataset.labelled_by != embedded.dataset.labelled_by:
            raise UsageError(
                f"{dataset.root}: the classes of {dataset.split} and {embedded.dataset.split} differ: a label must "
                "mean the same in both"
            )
        train = embed_dataset(dataset, self.towers, self.features, self.config.batch_size)
        for evaluated in (embedded, self.test):  # hyperparameters chosen on dev must not have seen the test set either
            _refuse_shared(f"--train-split {dataset.split}", train, evaluated)
        return train


def open_context(config: EvalConfig) -> EvalContext:
    """Load the model and embed the sets.

    Raises:
        EncoderError, SourceError: the model or a set cannot be loaded.
        UsageError: the dev set shares a picture with the test set.
        ConfigMismatchError: the folder holds results of another model.
    """
    test, dev = open_dataset(config.dataset, config.split), None
    if config.dev is not None:
        dev = open_dataset(config.dev, config.dev_split)
        if dev.kind != test.kind:
            raise UsageError(f"--dev {dev.root} is a {dev.kind} set, --dataset {test.root} a {test.kind} one")
    towers = load_towers(config.encoder)
    run = Store(config.out)
    others = {result["model"]["fingerprint"] for result in read_results(run)} - {towers.fingerprint}
    if others:
        raise ConfigMismatchError(
            f"{run.root} holds results of a model with fingerprint {min(others)[:12]}, this one has "
            f"{towers.fingerprint[:12]}: name another --out"
        )
    features = Store(config.features or config.out)
    embedded = embed_dataset(test, towers, features, config.batch_size)
    embedded_dev = None if dev is None else embed_dataset(dev, towers, features, config.batch_size)
    if embedded_dev is not None:
        _refuse_shared("--dev", embedded_dev, embedded)
    return EvalContext(config=config, towers=towers, run=run, features=features, test=embedded, dev=embedded_dev)


def require(context: EvalContext, *kinds: str) -> None:
    """Refuse a test set of a kind that the task cannot evaluate."""
    kind = context.test.dataset.kind
    if kind not in kinds:
        raise UsageError(
            f"--dataset {context.test.dataset.root} is a {kind} set (dataset_type.txt); this task evaluates "
            f"{' or '.join(kinds)} sets"
        )


def _refuse_shared(flag: str, other: Embedded, evaluated: Embedded) -> None:
    """Refuse another set that holds pictures of the evaluated one."""
    hashes = np.array(evaluated.examples["sha256"].to_pylist())
    shared = np.isin(hashes, other.examples["sha256"].to_pylist())
    if shared.any():
        raise UsageError(
            f"{flag}: {shared.sum():,} of the {len(hashes):,} pictures of {evaluated.dataset.root} "
            f"{evaluated.dataset.split} are in {other.dataset.root} {other.dataset.split} too, such as "
            f"{evaluated.keys[int(shared.argmax())]}: take them out of one of them"
        )
