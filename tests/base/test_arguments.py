"""A bare string is one name; a misspelt option is refused; modalities and pair keys have names of their own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memory_builder.base.runner import LocalRunner
from memory_builder.embedding.config import EmbedConfig
from memory_builder.errors import IndexBuildError, UsageError
from memory_builder.indexing.config import IndexConfig
from memory_builder.indexing.driver import index
from memory_builder.memory import Memory
from memory_builder.readers.discover import find_sources


@pytest.fixture
def memory(tmp_path: Path, write_memory: Any) -> Memory:
    vectors = np.random.default_rng(0).normal(size=(30, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    write_memory(tmp_path / "memory", vectors, vectors[::-1].copy())
    index(str(tmp_path / "memory"), keys=("image", "text"), config=IndexConfig(), runner=LocalRunner())
    return Memory.open(tmp_path / "memory")


def keys_of(memory: Memory) -> list[str]:
    ids = np.concatenate([memory.row_ids(ordinal) for ordinal in memory.commits])
    keys: list[str] = memory.rows(ids)["key"].to_pylist()
    return keys


@pytest.mark.parametrize("name", ["pair_keys", "keys"])
def test_a_bare_key_deletes_its_own_row_alone(memory: Memory, name: str) -> None:
    """keys="12" deleted rows 1 and 2."""
    key = keys_of(memory)[12]
    assert len(key) > 1
    left = memory.delete(**{name: key})  # type: ignore[arg-type]
    assert set(keys_of(memory)) - set(keys_of(left)) == {key}


def test_bare_names_are_one_name_everywhere(tmp_path: Path, memory: Memory) -> None:
    assert memory.rows([0], "caption").column_names == ["id", "caption"]
    assert memory.metadata([0], "width").column_names == ["width"]
    assert memory.append(keys="image").snapshot.modalities == ("image", "text")
    assert EmbedConfig(columns="n:int").column_types == {"n": "int"}  # type: ignore[arg-type]
    (tmp_path / "a.csv").write_text("name,caption\nx,y\n")
    assert len(find_sources(str(tmp_path / "a.csv"))) == 1


def test_options_of_a_filesystem_are_a_mapping_and_others_are_refused(memory: Memory) -> None:
    with pytest.raises(TypeError, match="serve_fromat"):
        Memory.open(memory.store.root, serve_fromat="fastscan")  # type: ignore[call-arg]
    assert len(Memory.open(memory.store.root, storage_options={"auto_mkdir": True})) == 30


def test_modality_has_a_name_of_its_own_and_keys_is_its_former_one(memory: Memory) -> None:
    query = memory.vectors([3], "text")
    assert np.array_equal(query, memory.vectors([3], keys="text"))
    assert memory.search(vectors=query, modality="text", k=1).ids[0, 0] == 3
    assert memory.search(vectors=query, keys="text", k=1).ids[0, 0] == 3
    assert memory.search(vectors=query, k=1).ids[0, 0] != 3
    with pytest.raises(UsageError, match="former name"):
        memory.search(vectors=query, modality="text", keys="image")
    with pytest.raises(UsageError, match="expected image or text"):
        memory.search(vectors=query, modality="audio")  # type: ignore[arg-type]


def test_a_modality_that_no_row_has_is_not_advised_to_be_indexed(tmp_path: Path, write_memory: Any) -> None:
    vectors = np.eye(8, dtype=np.float32)
    write_memory(tmp_path / "m", vectors, np.zeros_like(vectors))
    with pytest.raises(IndexBuildError, match="has no text vectors"):
        Memory.open(tmp_path / "m").search(vectors=vectors[:1], modality="text")
