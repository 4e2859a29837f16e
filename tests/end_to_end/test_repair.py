"""verify --repair: what is damaged is made again from its source, and nothing else is touched."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest


def contents(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def times(folder: Path) -> dict[str, int]:
    return {str(file.relative_to(folder)): file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def lose_a_row(path: Path) -> None:
    vectors = np.load(path)
    np.save(path, vectors[:-1])


@pytest.fixture(scope="module")
def built(tmp_path_factory, small_shards, command, model) -> Path:
    """A folder with three shards and a memory of them, not with the default settings."""
    folder = tmp_path_factory.mktemp("repair")
    (folder / "shards").mkdir()
    for i in range(3):
        shutil.copy(small_shards / f"0000{i}.tar", folder / "shards")
    flags = ("--batch-size", "32", "--columns", "license:string", "--require", "image")
    ran = command("embed", folder / "shards", "--memory", folder / "memory", "--model", model, *flags)
    assert ran.code == 0, ran.err
    return folder


@pytest.fixture
def shards(built) -> Iterator[Path]:
    """The shards; what is done to them is undone."""
    kept = shutil.copytree(built / "shards", built / "kept")
    yield built / "shards"
    shutil.rmtree(built / "shards")
    kept.rename(built / "shards")


@pytest.fixture
def memory(built, tmp_path) -> Path:
    """The memory, to damage."""
    return Path(shutil.copytree(built / "memory", tmp_path / "memory"))


def verified(command, memory: Path, *flags: object) -> tuple[int, dict]:
    ran = command("verify", memory, "--json", *flags)
    return ran.code, json.loads(ran.out)


def test_every_kind_of_damage_is_found_and_repaired_to_the_same_bytes(command, memory):
    sound, stamps = contents(memory), times(memory)
    sound = {path: digest for path, digest in sound.items() if "commits/" not in path}
    record = json.loads((memory / "commits" / "00001.json").read_text())
    damaged = {
        "img_emb/img_emb_00000.npy": lose_a_row,
        "metadata/metadata_00000.parquet": flip_a_bit,
        "rows/rows_00002.arrow": Path.unlink,
        "commits/00001.json": lambda path: path.write_text("{"),
    }
    for path, damage in damaged.items():
        damage(memory / path)
    code, found = verified(command, memory)
    assert code == 1
    assert {problem["file"] for problem in found["problems"]} == set(damaged)
    code, found = verified(command, memory, "--repair")
    assert (code, found) == (0, {"ok": True, "problems": [], "repaired": sorted(damaged)})
    assert json.loads((memory / "commits" / "00001.json").read_text()) == record
    assert {path: digest for path, digest in contents(memory).items() if "commits/" not in path} == sound
    written = {path for path, stamp in times(memory).items() if stamp != stamps[path]}
    assert written == set(damaged), "what was sound is left alone"


def test_a_sound_memory_is_not_embedded_again(command, memory):
    stamps = times(memory)
    moved = f"local-dir:{memory}/no-such-model"
    assert verified(command, memory, "--repair", "--model", moved)[1] == {"ok": True, "problems": [], "repaired": []}
    assert times(memory) == stamps


def test_what_cannot_be_repaired_is_said_and_left(command, memory, shards):
    (memory / "metadata" / "metadata_00099.parquet").write_bytes(b"stray")
    for i in range(3):
        flip_a_bit(memory / "img_emb" / f"img_emb_0000{i}.npy")
    (shards / "00000.tar").unlink()
    shutil.copy(shards / "00002.tar", shards / "00001.tar")
    before = contents(memory)
    code, found = verified(command, memory, "--repair")
    assert code == 1
    assert found["repaired"] == ["img_emb/img_emb_00002.npy"]
    problems = {problem["file"]: problem["problem"] for problem in found["problems"]}
    assert "00000.tar is missing" in problems["img_emb/img_emb_00000.npy"]
    assert "00001.tar changed" in problems["img_emb/img_emb_00001.npy"]
    assert "foreign" in problems["metadata/metadata_00099.parquet"]
    assert len(problems) == 3
    changed = {path for path, digest in contents(memory).items() if before[path] != digest}
    assert changed == {"img_emb/img_emb_00002.npy"}
    ran = command("verify", memory, "--repair")
    assert (ran.code, "repaired" in ran.out, "not repaired: SourceError" in ran.out) == (1, True, True)


def test_bytes_that_differ_from_the_record_are_not_put(command, memory):
    record = memory / "commits" / "00001.json"
    commit = json.loads(record.read_text())
    commit["checksums"]["rows/rows_00001.arrow"] = "0" * 64
    (memory / "manifest.parquet").unlink()
    record.write_text(json.dumps(commit))
    before = contents(memory)
    code, found = verified(command, memory, "--repair")
    assert (code, found["repaired"]) == (1, ["manifest.parquet"])  # which the commit records say as well
    (problem,) = found["problems"]
    assert "embedded again gives other bytes than its commit record (rows/rows_00001.arrow)" in problem["problem"]
    (memory / "manifest.parquet").unlink()
    assert contents(memory) == before


def test_the_wrong_model_is_refused(command, memory, tmp_path, model):
    flip_a_bit(memory / "img_emb" / "img_emb_00000.npy")
    other = shutil.copytree(model.removeprefix("local-dir:"), tmp_path / "other")
    config = json.loads((other / "open_clip_config.json").read_text())
    config["preprocess_cfg"]["mean"] = [0.4, 0.5, 0.5]
    (other / "open_clip_config.json").write_text(json.dumps(config))
    before = contents(memory)
    ran = command("verify", memory, "--repair", "--model", f"local-dir:{other}")
    assert ran.code == 2
    assert "fingerprint" in ran.err
    assert contents(memory) == before


def test_purged_rows_are_not_brought_back(command, memory_copy):
    assert command("delete", memory_copy, "--ids", "3", "7").code == 0
    assert command("compact", memory_copy, "--purge").code == 0
    flip_a_bit(memory_copy / "metadata" / "metadata_00000.parquet")
    (memory_copy / "text_emb" / "text_emb_00000.npy").unlink()
    (memory_copy / "rejects" / "rejects_00001.parquet").unlink()
    before = contents(memory_copy)
    code, found = verified(command, memory_copy, "--repair")
    assert found["repaired"] == ["rejects/rejects_00001.parquet"]
    assert code == 1
    problems = {problem["file"]: problem["problem"] for problem in found["problems"]}
    assert "run compact --purge again" in problems["metadata/metadata_00000.parquet"]
    assert "were purged, and embedding it again would restore them" in problems["text_emb/text_emb_00000.npy"]
    assert len(problems) == 2
    assert before.items() <= contents(memory_copy).items()


def test_what_was_made_of_rejects_is_made_again(command, small_shards, tmp_path, model):
    memory = tmp_path / "memory"
    embed = ("embed", "--memory", memory, "--model", model, "--max-pixels", "4000")
    assert command(*embed, small_shards / "00000.tar").code == 0
    assert command(*embed, "--retry-rejects").code == 0
    sound = contents(memory)
    flip_a_bit(memory / "rejects" / "rejects_00001.parquet")
    assert verified(command, memory, "--repair") == (
        0,
        {"ok": True, "problems": [], "repaired": ["rejects/rejects_00001.parquet"]},
    )
    assert contents(memory) == sound
