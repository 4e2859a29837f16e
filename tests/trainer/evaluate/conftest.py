import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from helpers.evaluation_sets import (
    CLASSES,
    classification_set,
    encoded,
    multilabel_set,
    picture,
    retrieval_set,
    write_tar,
)
from memory_builder.base.runner import LocalRunner
from memory_builder.cli import main
from memory_builder.embedding.config import EmbedConfig
from memory_builder.embedding.driver import embed
from memory_builder.indexing.config import IndexConfig
from memory_builder.indexing.driver import index
from memory_builder.model.encoder import EncoderConfig
from trainer.evaluate.sets.towers import Towers, load_towers


@pytest.fixture(scope="session")
def towers(model_dir) -> Towers:
    """The bundled model."""
    return load_towers(EncoderConfig(model=f"local-dir:{model_dir}"))


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    """A classification set with pictures to learn from."""
    return classification_set(tmp_path_factory.mktemp("sets") / "shapes", splits={"test": 6, "train": 5})


@pytest.fixture(scope="session")
def dev_shapes(tmp_path_factory) -> Path:
    """Other pictures of the same kind, to choose settings on."""
    root = tmp_path_factory.mktemp("sets") / "dev-shapes"
    return classification_set(root, splits={"test": 3, "train": 4}, first_seed=500)


@pytest.fixture(scope="session")
def many_labels(tmp_path_factory) -> Path:
    return multilabel_set(tmp_path_factory.mktemp("sets") / "many-labels", n=40)


@pytest.fixture(scope="session")
def captioned(tmp_path_factory) -> Path:
    return retrieval_set(tmp_path_factory.mktemp("sets") / "captioned", n=40)


@pytest.fixture(scope="session")
def memory(tmp_path_factory, model_dir) -> Path:
    """Twelve rows of every shape but the last class, with captions that name it, and some that name nothing."""
    root = tmp_path_factory.mktemp("memory")
    samples = []
    for seed in range(2_000, 2_012):
        for label in range(len(CLASSES) - 1):
            caption = f"drawing no {seed}: {CLASSES[label].upper()}"
            samples.append({"png": encoded(picture(label, seed)), "txt": caption.encode()})
        samples.append({"png": encoded(picture(11, seed)), "txt": b"untitled"})
    write_tar(root / "shards" / "0.tar", samples)
    encoder = EncoderConfig(model=f"local-dir:{model_dir}")
    shards = [str(root / "shards" / "0.tar")]
    embed(shards, str(root / "memory"), encoder=encoder, config=EmbedConfig(), runner=LocalRunner())
    index(str(root / "memory"), keys=("image", "text"), config=IndexConfig(), runner=LocalRunner())
    return root / "memory"


@dataclass(frozen=True)
class Ran:
    """What a command printed and returned."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture(scope="session")
def evaluate(model_dir) -> Callable[..., Ran]:
    """``memory-builder evaluate`` with the bundled model, in this process."""

    def run(task: str, *arguments: object) -> Ran:
        out, err = io.StringIO(), io.StringIO()
        given = ["evaluate", task, "--model", f"local-dir:{model_dir}", *map(str, arguments)]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(given)
        return Ran(code, out.getvalue(), err.getvalue())

    return run
