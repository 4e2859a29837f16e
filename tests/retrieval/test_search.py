"""What is asked for, before anything is looked up: modes, scores, queries, captions; and how a tar is laid out."""

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
import tyro

from memory_builder.commands.retrieve import Retrieve
from memory_builder.errors import UsageError
from memory_builder.model.templates import read_templates
from memory_builder.readers.read import Pair, read_pairs
from memory_builder.retrieval.classes import Class, read_captions
from memory_builder.retrieval.config import QueryConfig, RetrieveConfig
from memory_builder.retrieval.driver import Request
from memory_builder.retrieval.queries import blocks_of
from memory_builder.retrieval.tar_writer import TarWriter

CLASSES = [Class(label=0, name="cat", synonyms=("kitty",), images=("a.png",)), Class(label=1, name="cat")]


def test_modes_are_united_in_a_fixed_order_and_each_has_its_least_score() -> None:
    both = QueryConfig(mode=("i2i", "both"), min_score=("t2i=0.2", "i2i=0.5"))
    assert both.modes == ("t2i", "t2t", "i2i")
    assert both.min_scores() == {"t2i": 0.2, "i2i": 0.5}
    assert QueryConfig(mode=("t2t",), min_score=("0.4",)).min_scores() == {"t2t": 0.4}


@pytest.mark.parametrize(
    "wrong",
    [
        {"per_query": 0},
        {"block_queries": 0},
        {"mode": ()},
        {"min_score": ("high",)},
        {"min_score": ("t2t=0.5",)},
        {"mode": ("both",), "min_score": ("0.5",)},
    ],
)
def test_what_cannot_be_asked_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="--"):
        QueryConfig(**wrong)


@pytest.mark.parametrize("wrong", [{"dedup": 0.0}, {"dedup": 1.5}, {"shard_pairs": 0}, {"support": 0}])
def test_what_cannot_be_made_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="--"):
        RetrieveConfig(**wrong)


def test_every_name_meets_every_template_and_blocks_hold_one_mode() -> None:
    ask = QueryConfig(mode=("t2i", "i2i"), block_queries=4)
    blocks = blocks_of(CLASSES, ("{c}", "a {c}"), ask)
    assert [(block.number, block.mode, len(block.queries)) for block in blocks] == [
        (0, "t2i", 4),
        (1, "t2i", 2),
        (2, "i2i", 1),
    ]
    asked = [(query.number, query.label, query.inputs) for block in blocks for query in block.queries]
    assert asked == [
        (0, 0, ("cat",)),
        (1, 0, ("a cat",)),
        (2, 0, ("kitty",)),
        (3, 0, ("a kitty",)),
        (4, 1, ("cat",)),
        (5, 1, ("a cat",)),
        (6, 0, ("a.png",)),
    ]
    averaged = blocks_of(CLASSES, ("{c}", "a {c}"), QueryConfig(average=True))
    assert [query.inputs for query in averaged[0].queries] == [("cat", "a cat", "kitty", "a kitty"), ("cat", "a cat")]


def test_captions_are_classes_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "captions.txt"
    file.write_text("a red {c}\n\n  an airplane\n")
    assert [(c.label, c.name) for c in read_captions(file)] == [(0, "a red {c}"), (1, "an airplane")]
    file.write_text("\n")
    with pytest.raises(UsageError, match="is empty"):
        read_captions(file)
    with pytest.raises(UsageError, match="cannot be read"):
        read_captions(tmp_path / "nothing.txt")


def test_one_prompt_needs_no_file() -> None:
    assert read_templates("a photo of a {c}.") == ("a photo of a {c}.",)


def test_a_tar_is_what_tarfile_and_our_readers_read_and_has_the_same_bytes_each_time(tmp_path: Path) -> None:
    files = {"00000-000001.png": b"picture", "00000-000001.txt": "café".encode(), "00000-000001.json": b"{}"}
    tars = []
    for _ in range(2):
        buffer = io.BytesIO()
        with TarWriter(buffer) as tar:
            for name, data in files.items():
                tar.add(name, data)
        assert tar.n_bytes == len(buffer.getvalue())
        tars.append(buffer.getvalue())
    assert tars[0] == tars[1]
    with tarfile.open(fileobj=io.BytesIO(tars[0])) as read:
        assert {member.name: read.extractfile(member).read() for member in read} == files  # type: ignore[union-attr]
    path = tmp_path / "0.tar"
    path.write_bytes(tars[0])
    (pair,) = read_pairs(str(path))
    assert isinstance(pair, Pair)
    assert (pair.key, pair.image, pair.caption) == ("00000-000001", b"picture", "café")


def test_the_command_asks_as_the_library_does() -> None:
    asked = tyro.cli(Retrieve, args=["m", "--out", "o"])
    request = Request(memory="m", out="o", classes=(), templates=(), config=RetrieveConfig())
    assert (asked.subset, asked.max_missing) == (request.config, request.max_missing)
    assert request.max_missing == 0.1
    flags = "--per-query 7 --max-per-class 3 --leak-pixels 0.9 --dedup 0.95 --shard-pairs 5 --support 4 --strip 2"
    config = tyro.cli(Retrieve, args=["m", "--out", "o", *flags.split()]).subset
    assert (config.ask.per_query, config.select.max_per_class, config.leaks.leak_pixels) == (7, 3, 0.9)
    assert (config.dedup, config.shard_pairs, config.support, config.strip) == (0.95, 5, 4, 2)
