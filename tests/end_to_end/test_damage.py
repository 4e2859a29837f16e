"""The table "Damage, file by file" of docs/contract.md: each kind of file of a memory, damaged in four ways."""

import json
import re
import shutil
from pathlib import Path

import pytest

from memory_builder.memory import Memory

CONTRACT = Path(__file__).parents[2] / "docs" / "contract.md"


def flip_first(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


def flip_middle(data: bytes) -> bytes:
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


DAMAGE = {
    "first bit": flip_first,
    "empty": lambda _: b"",
    "half": lambda data: data[: len(data) // 2],
    "missing": None,
}
FILES = {
    "memory.json": "--repair",
    "plan.parquet": "--repair",
    "manifest.parquet": "--repair",
    "commits/00003.json": "--repair",
    "snapshots/5.json": "--repair",
    "tombstones/4.npy": "--repair",
    "purges/00000.json": "compact --purge",
    "img_emb/img_emb_00002.npy": "--repair",
    "text_emb/text_emb_00002.npy": "--repair",
    "metadata/metadata_00002.parquet": "--repair",
    "rows/rows_00002.arrow": "--repair",
    "rejects/rejects_00002.parquet": "--repair",
    "index/*/trained.faiss": "--repair",
    "index/*/trained.json": "--repair",
    "index/*/held_out.npy": "--repair",
    "index/*/index.json": "--repair",
    "index/*/parts/*.faiss": "--repair",
    "index/*/parts/*.json": "index",
    "index/*/tuning.json": "index",
}
"""File → what mends it."""
INDEX_FLAGS = ("--keys", "image", "--index-key", "IVF4,Flat", "--part-rows", "150")
LOSES = ("plan.parquet", "snapshots/5.json", "tombstones/4.npy")
"""Files that hold what no other says."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory, built_memory, command) -> Path:
    """A memory with deleted, purged and compacted rows."""
    memory = tmp_path_factory.mktemp("damage") / "memory"
    shutil.copytree(built_memory, memory)
    assert command("delete", memory, "--ids", "3", "7").code == 0
    assert command("compact", memory, "--purge").code == 0
    assert command("delete", memory, "--ids", str((5 << 32) + 1)).code == 0
    assert command("index", memory, *INDEX_FLAGS).code == 0
    assert command("verify", memory).code == 0
    return memory


def contents(memory: Path) -> dict[str, bytes]:
    files = (path for path in memory.rglob("*") if path.is_file())
    return {str(path.relative_to(memory)): path.read_bytes() for path in files}


def current_index(memory: Path) -> str:
    newest = max((memory / "snapshots").iterdir(), key=lambda path: int(path.stem))
    return json.loads(newest.read_text())["indexes"]["image"]["index"]


def path_of(memory: Path, file: str) -> Path:
    """A file of the kind; of several parts the last."""
    if not file.startswith("index/"):
        return memory / file
    return sorted(memory.glob(file.replace("index/*", current_index(memory))))[-1]


def found_in(memory: Path) -> set[int]:
    queries = Memory.open(memory).vectors([2, 9])
    return set(Memory.open(memory).search(vectors=queries, k=600, keys="image", nprobe=4).ids.ravel().tolist())


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("file", FILES)
def test_each_kind_of_file_damaged_is_told_and_mended_by_what_the_table_says(command, whole, tmp_path, file, damage):
    memory = Path(shutil.copytree(whole, tmp_path / "memory"))
    before, found = contents(memory), found_in(memory)
    path, spoil = path_of(memory, file), DAMAGE[damage]
    name = str(path.relative_to(memory))
    if spoil is None:
        path.unlink()
    else:
        path.write_bytes(spoil(path.read_bytes()))
    if name == "purges/00000.json" and damage == "missing":
        pytest.skip("that a shard was purged is then known by its checksums alone; see the test below")
    if name == "snapshots/5.json" and damage == "missing":
        assert command("verify", memory).code == 0  # the state before it is current then
        return
    ran = command("verify", memory, "--json")
    assert ran.code == 1, ran.err
    assert name in {problem["file"] for problem in json.loads(ran.out)["problems"]}
    ran = command("verify", memory, "--repair", "--json")
    said = json.loads(ran.out)
    assert "run memory-builder verify" not in ran.out, "no advice in a circle"
    if FILES[file] == "--repair":
        assert said["problems"] == []
        assert name in said["repaired"]
        assert ran.code == (1 if file in LOSES else 0)
        assert [what.partition(":")[0] for what in said.get("lost", [])] == ([name] if file in LOSES else [])
    else:
        assert [problem["file"] for problem in said["problems"]] == [name]
        again, *flags = FILES[file].split()
        assert again in said["problems"][0]["problem"]
        ran = command(again, memory, *(flags or INDEX_FLAGS))
        assert ran.code == 0, ran.err
    assert command("verify", memory).code == 0
    if FILES[file] == "--repair":
        changed = {path for path, data in before.items() if contents(memory).get(path) != data}
        derived = {*LOSES, "memory.json", "manifest.parquet", "commits/00003.json"}
        assert changed <= derived | ({name} if name.endswith("json") else set()), "the very bytes, and nothing else"
    assert found_in(memory) - found <= {(5 << 32) + 1}  # deleted after the last whole tombstones, and said to be lost


def test_every_row_of_the_table_is_tested():
    text = CONTRACT.read_text()
    table = text.split("### Damage, file by file", 1)[1].split("\n#", 1)[0]
    rows = re.findall(r"^\| `([^`]+)`", table, re.M)
    kinds = {re.sub(r"[0-9]+(?=[.])|(?<=_)[0-9]+", "N", file) for file in FILES}
    memory = {row for row in rows if not row.startswith(("OUT/", "RUN/"))}
    assert kinds == memory


def test_a_flipped_bit_anywhere_in_a_file_with_a_checksum_is_found_and_mended(command, whole, tmp_path):
    for file in FILES:
        path = path_of(whole, file)
        if FILES[file] != "--repair" or (path.suffix in (".json", ".parquet") and file.count("/") == 0):
            continue
        if file.endswith(("held_out.npy", "index.json", "trained.json", "snapshots/5.json")):
            continue  # no checksum tells of them
        memory = Path(shutil.copytree(whole, tmp_path / "memory"))
        path = path_of(memory, file)
        path.write_bytes(flip_middle(path.read_bytes()))
        assert command("verify", memory).code == 1, file
        command("verify", memory, "--repair")
        assert command("verify", memory).code == 0, file
        shutil.rmtree(memory)
