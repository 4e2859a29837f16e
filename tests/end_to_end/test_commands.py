"""The command as a user types it: outputs, exit codes, and errors that name what, where and the fix."""

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from memory_builder import Memory
from memory_builder.embedding import driver


def fingerprint(folder: Path) -> dict[str, str]:
    """Every file of a folder with its checksum."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_info_counts_rows_shards_and_indexes(command, built_memory):
    info = json.loads(command("info", built_memory, "--json").out)
    assert info["rows"] == 500
    assert info["shards"] == {"done": 10, "partial": 0, "failed": 0, "pending": 0}
    assert info["rejects"] == {}
    assert set(info["indexes"]) == {"image", "text"}
    assert info["indexes"]["image"]["index_key"] == "IDMap2,Flat"
    assert info["indexes"]["text"]["queries"]["text"]["recall@10"] == 1.0


def test_info_for_people_shows_the_same(command, built_memory):
    ran = command("info", built_memory)
    assert ran.code == 0
    assert "500 rows" in ran.out
    assert "10 done, 0 partial, 0 failed, 0 pending" in ran.out


def test_search_prints_one_json_object_a_query(command, built_memory):
    ran = command("search", built_memory, "--text", "cat", "umbrella", "-k", "3", "--json")
    lines = [json.loads(line) for line in ran.out.splitlines()]
    assert [line["query"] for line in lines] == [0, 1]
    for line in lines:
        assert [set(hit) for hit in line["hits"]] == [{"id", "score", "key", "caption", "url", "path"}] * 3
        scores = [hit["score"] for hit in line["hits"]]
        assert scores == sorted(scores, reverse=True)


def test_search_finds_a_caption_by_itself_and_a_picture_by_itself(command, built_memory, tmp_path):
    memory = Memory.open(built_memory)
    row = memory.rows([7]).to_pylist()[0]
    (line,) = command("search", built_memory, "--text", row["caption"], "--keys", "text", "--json").out.splitlines()
    assert json.loads(line)["hits"][0]["score"] > 0.999
    np.save(tmp_path / "query.npy", memory.vectors([7], "image")[0])
    ran = command("search", built_memory, "--vector", tmp_path / "query.npy", "-k", "1", "--json")
    assert json.loads(ran.out)["hits"][0]["id"] == 7


def test_search_asks_for_more_than_there_is(command, built_memory):
    hits = json.loads(command("search", built_memory, "--text", "cat", "-k", "600", "--json").out)["hits"]
    assert len(hits) == 500
    assert len({hit["id"] for hit in hits}) == 500


def test_results_go_to_stdout_and_progress_to_stderr(command, small_shards, tmp_path, model):
    ran = command("embed", small_shards / "00000.tar", "--memory", tmp_path / "m", "--model", model)
    assert "1/1 shards (1 embedded now), 50 rows" in ran.out
    assert "embed: 1/1 shards" in ran.err
    assert "embed:" not in ran.out


def test_embedding_again_does_nothing_again_and_more_shards_are_added(command, memory_copy, small_shards, model):
    before = fingerprint(memory_copy)
    ran = command("embed", small_shards, "--memory", memory_copy, "--model", model)
    assert "0 embedded now" in ran.out
    assert fingerprint(memory_copy) == before
    shutil.copy(small_shards / "00000.tar", memory_copy.parent / "more.tar")
    ran = command("embed", memory_copy.parent / "more.tar", "--memory", memory_copy, "--model", model)
    assert "1/1 shards (1 embedded now), 550 rows" in ran.out
    assert {path: digest for path, digest in fingerprint(memory_copy).items() if path in before} != before  # plan grew
    unchanged = {p for p in before if p.split("/")[0] in ("img_emb", "text_emb", "metadata", "commits", "index")}
    assert all(fingerprint(memory_copy)[path] == before[path] for path in unchanged)


@pytest.fixture
def shards(small_shards, tmp_path) -> Path:
    """A folder of three shards that a test may change."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for name in ("00000.tar", "00001.tar", "00002.tar"):
        shutil.copy(small_shards / name, folder / name)
    return folder


def test_a_shard_that_vanishes_is_named_and_the_rest_is_done(
    command, shards, small_shards, tmp_path, model, monkeypatch
):

    def plan_and_lose_one(*arguments):
        plan = extend_plan(*arguments)
        (shards / "00001.tar").unlink()
        return plan

    extend_plan = driver.extend_plan
    with monkeypatch.context() as patch:
        patch.setattr(driver, "extend_plan", plan_and_lose_one)
        ran = command("embed", shards, "--memory", tmp_path / "m", "--model", model)
    assert ran.code == 1
    assert "2/3 shards" in ran.out
    assert "1 shards failed" in ran.err
    assert "00001.tar" in ran.err
    info = json.loads(command("info", tmp_path / "m", "--json").out)
    assert info["shards"] == {"done": 2, "partial": 0, "failed": 1, "pending": 0}
    shutil.copy(small_shards / "00001.tar", shards / "00001.tar")
    ran = command("embed", shards, "--memory", tmp_path / "m", "--model", model)
    assert ran.code == 0
    info = json.loads(command("info", tmp_path / "m", "--json").out)
    assert info["shards"] == {"done": 3, "partial": 0, "failed": 0, "pending": 0}


def test_verify_finds_a_flipped_bit_a_missing_file_and_a_foreign_one(command, memory_copy):
    assert json.loads(command("verify", memory_copy, "--json").out) == {"ok": True, "problems": []}
    vectors = memory_copy / "img_emb" / "img_emb_00003.npy"
    data = bytearray(vectors.read_bytes())
    data[1000] ^= 1
    vectors.write_bytes(data)
    (memory_copy / "text_emb" / "text_emb_00004.npy").unlink()
    (memory_copy / "metadata" / "metadata_00099.parquet").write_bytes(b"stray")
    part = next((memory_copy / "index").glob("*/parts/*.faiss"))
    part.write_bytes(part.read_bytes()[:-1] + b"!")
    ran = command("verify", memory_copy, "--json")
    assert ran.code == 1
    problems = {problem["file"]: problem for problem in json.loads(ran.out)["problems"]}
    assert problems["img_emb/img_emb_00003.npy"]["shard"] == 3
    assert "checksum" in problems["img_emb/img_emb_00003.npy"]["problem"]
    assert problems["text_emb/text_emb_00004.npy"]["problem"] == "missing"
    assert "foreign" in problems["metadata/metadata_00099.parquet"]["problem"]
    assert str(part.relative_to(memory_copy)) in problems
    assert len(problems) == 4


def errors(command, *arguments) -> str:
    """The one error line of a command that cannot be done as asked."""
    ran = command(*arguments)
    assert ran.code == 2, ran
    assert "Traceback" not in ran.err
    (line,) = [line for line in ran.err.splitlines() if line.startswith("error: ")]
    return line


def test_unknown_model(command, small_shards, tmp_path):
    error = errors(command, "embed", small_shards, "--memory", tmp_path / "m", "--model", "ViT-Z-99")
    assert "ViT-Z-99" in error
    assert "list_pretrained" in error
    assert not (tmp_path / "m").exists()


def test_missing_model_folder(command, small_shards, tmp_path):
    error = errors(command, "embed", small_shards, "--memory", tmp_path / "m", "--model", f"local-dir:{tmp_path}/no")
    assert "local-dir" in error


@pytest.mark.parametrize("source", ["nothing/*.tar", "nothing.tar", "."])
def test_empty_source(command, tmp_path, model, source):
    error = errors(command, "embed", tmp_path / source, "--memory", tmp_path / "m", "--model", model)
    assert str(tmp_path) in error
    assert not (tmp_path / "m").exists()


def test_another_configuration_is_refused_with_what_differs(command, memory_copy, small_shards, model):
    before = fingerprint(memory_copy)
    flags = ("--memory", memory_copy, "--model", model, "--batch-size", "32")
    error = errors(command, "embed", small_shards, *flags)
    assert "batch_size: 256 before, 32 now" in error
    assert fingerprint(memory_copy) == before


def other_model(model: str, folder: Path) -> str:
    """The small model with one preprocessing constant changed: another encoder."""
    shutil.copytree(model.removeprefix("local-dir:"), folder)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["preprocess_cfg"]["mean"] = [0.4, 0.5, 0.5]
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return f"local-dir:{folder}"


def test_wrong_encoder_is_refused_by_search_and_by_embed(command, memory_copy, small_shards, model, tmp_path):
    other = other_model(model, tmp_path / "other")
    before = fingerprint(memory_copy)
    error = errors(command, "search", memory_copy, "--text", "cat", "--model", other)
    assert "fingerprint" in error
    error = errors(command, "embed", small_shards, "--memory", memory_copy, "--model", other)
    assert "fingerprint" in error
    assert fingerprint(memory_copy) == before


def test_a_budget_no_key_fits_names_the_least_that_does(command, memory_copy):
    before = fingerprint(memory_copy)
    error = errors(command, "index", memory_copy, "--max-memory", "1K")
    assert "the minimum is" in error
    assert fingerprint(memory_copy) == before


def test_an_index_key_that_cannot_hold_row_ids(command, memory_copy):
    assert "IVF1024,Flat" in errors(command, "index", memory_copy, "--index-key", "HNSW32")
    assert "faiss does not know" in errors(command, "index", memory_copy, "--index-key", "IVF4,Nonsense")
    assert "lists" in errors(command, "index", memory_copy, "--index-key", "IVF4096,Flat")
    assert json.loads(command("info", memory_copy, "--json").out)["snapshot"] == 1


def test_searching_before_indexing_says_how_to_index(command, small_shards, tmp_path, model):
    command("embed", small_shards / "00000.tar", "--memory", tmp_path / "m", "--model", model)
    error = errors(command, "search", tmp_path / "m", "--text", "cat", "--keys", "text")
    assert f"memory-builder index {tmp_path}/m --modality text" in error


def test_unreadable_and_missing_index_parts_and_vectors(command, memory_copy):
    part = next((memory_copy / "index").glob("*/parts/*.faiss"))
    whole = part.read_bytes()
    part.write_bytes(whole[: len(whole) // 2])
    codes = {keys: command("search", memory_copy, "--text", "cat", "--keys", keys) for keys in ("image", "text")}
    broken = [ran for ran in codes.values() if ran.code == 1]
    assert len(broken) == 1
    assert "bytes, its record says" in broken[0].err
    part.unlink()
    assert sorted(command("search", memory_copy, "--text", "c", "--keys", k).code for k in ("image", "text")) == [0, 1]


def test_missing_look_ups_are_told_and_read_from_the_metadata_which_is_needed(command, memory_copy):
    whole = command("search", memory_copy, "--text", "cat", "-k", "500").out
    (memory_copy / "rows" / "rows_00000.arrow").unlink()
    ran = command("search", memory_copy, "--text", "cat", "-k", "500")
    assert (ran.code, ran.out) == (0, whole)
    assert "rows_00000.arrow" in ran.err
    (memory_copy / "metadata" / "metadata_00000.parquet").unlink()
    ran = command("search", memory_copy, "--text", "cat", "-k", "500")
    assert ran.code == 1
    assert "metadata_00000.parquet" in ran.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--text", "cat", "-k", "0"), "k 0: expected a whole number, at least 1"),
        ((), "exactly one of text, image and vectors"),
        (("--image", "/no/such.png"), "/no/such.png"),
        (("--vector", "/no/such.npy"), "/no/such.npy"),
        (("--text", "a", "--pretrained", "w.pt"), "--pretrained w.pt needs --model"),
    ],
)
def test_wrong_searches(command, built_memory, arguments, says):
    assert says in errors(command, "search", built_memory, *arguments)


def test_a_query_vector_of_another_width(command, built_memory, tmp_path):
    np.save(tmp_path / "wide.npy", np.ones(5, np.float32))
    assert "[q, 192]" in errors(command, "search", built_memory, "--vector", tmp_path / "wide.npy")


def test_wrong_usage_exits_with_2(command, built_memory):
    assert command("embed").code == 2
    assert command("nonsense").code == 2
    assert command("search", built_memory, "--keys", "sound").code == 2
    assert command("info", built_memory / "nowhere").code == 2


def test_a_command_whose_reader_has_gone_is_not_done(built_memory):
    arguments = [sys.executable, "-m", "memory_builder.cli", "info", str(built_memory)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_debug_shows_where(built_memory):
    arguments = [sys.executable, "-m", "memory_builder.cli", "info", f"{built_memory}/nowhere"]
    plain = subprocess.run(arguments, capture_output=True, text=True, check=False)
    debug = subprocess.run([*arguments, "--debug"], capture_output=True, text=True, check=False)
    assert plain.returncode == 2
    assert "Traceback" not in plain.stderr
    assert "Traceback" in debug.stderr


def test_info_while_a_run_is_under_way_shows_what_is_committed(command, small_shards, tmp_path, model):
    from memory_builder.base.runner import LocalRunner
    from memory_builder.embedding.driver import embed
    from memory_builder.embedding.embed_shard import EmbedConfig
    from memory_builder.model.encoder import EncoderConfig

    seen = []

    class Watched(LocalRunner):
        def run(self, task, items):
            for item, result in super().run(task, items):
                yield item, result
                if len(items) > 1:
                    seen.append(json.loads(command("info", tmp_path / "m", "--json").out))

    shards = [str(small_shards / f"0000{i}.tar") for i in range(3)]
    embed(
        shards,
        str(tmp_path / "m"),
        encoder=EncoderConfig(model=model),
        config=EmbedConfig(),
        runner=Watched(),
    )
    assert [info["shards"]["done"] for info in seen] == [1, 2, 3]
    assert [info["shards"]["pending"] for info in seen] == [2, 1, 0]
    assert seen[0]["pairs_per_s"] > 0
    assert seen[0]["time_left_s"] > 0
    assert seen[2]["time_left_s"] is None


def test_a_hole_in_a_range_is_named(command, small_shards, tmp_path, model):
    shards = f"{small_shards}/{{00007..00012}}.tar"
    error = errors(command, "embed", shards, "--memory", tmp_path / "m", "--model", model)
    assert "3 of 6 shards" in error
    assert "00010.tar" in error
    assert not (tmp_path / "m").exists()


def test_what_is_no_tar_fails_and_other_files_of_a_folder_are_left_alone(command, small_shards, tmp_path, model):
    shards = tmp_path / "shards"
    shards.mkdir()
    shutil.copy(small_shards / "00000.tar", shards / "00000.tar")
    (shards / "00000_stats.json").write_text("{}")
    (shards / "README.md").write_text("shards")
    (shards / "00001.tar").write_bytes(b"<html>not found</html>" * 50)
    ran = command("embed", shards / "*", "--memory", tmp_path / "m", "--model", model)
    assert ran.code == 1
    assert "1/2 shards" in ran.out
    assert "not a tar" in ran.err
    # the failed shard rests while others are asked for
    assert command("embed", shards / "00000.tar", "--memory", tmp_path / "m", "--model", model).code == 0
    info = json.loads(command("info", tmp_path / "m", "--json").out)
    assert info["shards"] == {"done": 1, "partial": 0, "failed": 1, "pending": 0}


def test_only_what_failed_is_tried_again(command, shards, small_shards, tmp_path, model, monkeypatch):

    def plan_and_move_two(*arguments):
        plan = extend_plan(*arguments)
        for name in ("00001.tar", "00002.tar"):
            (shards / name).rename(tmp_path / name)
        return plan

    extend_plan = driver.extend_plan
    retry = ("embed", "--memory", tmp_path / "m", "--model", model, "--retry-failed")
    with monkeypatch.context() as patch:
        patch.setattr(driver, "extend_plan", plan_and_move_two)
        ran = command("embed", shards, "--memory", tmp_path / "m", "--model", model)
    assert (ran.code, "with --retry-failed only them" in ran.err) == (1, True)
    (tmp_path / "00001.tar").rename(shards / "00001.tar")
    shutil.copy(small_shards / "00003.tar", shards)  # never asked for
    ran = command(*retry)
    assert (ran.code, "1/2 shards (1 embedded now), 100 rows" in ran.out) == (1, True)
    assert "00002.tar is missing" in ran.err
    (tmp_path / "00002.tar").rename(shards / "00002.tar")
    assert "0/0 shards" in command(*retry, shards / "00000.tar").out  # of this source, none failed
    ran = command(*retry)
    assert (ran.code, "1/1 shards (1 embedded now), 150 rows" in ran.out) == (0, True)
    assert "0/0 shards" in command(*retry).out
    info = json.loads(command("info", tmp_path / "m", "--json").out)
    assert info["shards"] == {"done": 3, "partial": 0, "failed": 0, "pending": 0}


def test_sources_that_changed_are_told_and_embedded_as_new_shards(command, small_shards, tmp_path, model):
    shard = Path(shutil.copy(small_shards / "00000.tar", tmp_path / "a.tar"))
    command("embed", shard, "--memory", tmp_path / "m", "--model", model)
    shutil.copy(small_shards / "00001.tar", shard)
    ran = command("embed", shard, "--memory", tmp_path / "m", "--model", model)
    assert "1 sources changed" in ran.err
    assert json.loads(command("info", tmp_path / "m", "--json").out)["rows"] == 100


def test_damage_in_an_index_is_mended_by_building_it_again(command, memory_copy):
    before = fingerprint(memory_copy / "index")
    for pattern in ("*/parts/*.faiss", "*/trained.faiss", "*/held_out.npy", "*/tuning.json", "*/parts/*.json"):
        for file in (memory_copy / "index").glob(pattern):
            file.unlink()
    assert command("search", memory_copy, "--text", "cat").code == 1
    assert not json.loads(command("verify", memory_copy, "--json").out)["ok"]
    assert command("index", memory_copy).code == 0
    after = fingerprint(memory_copy / "index")
    timed = ("tuning.json", "index.json")
    same = {path for path in before if not path.endswith(timed)}
    assert {path: after[path] for path in same} == {path: before[path] for path in same}
    assert command("search", memory_copy, "--text", "cat").code == 0
    assert json.loads(command("verify", memory_copy, "--json").out)["ok"]


def test_another_target_recall_is_a_new_state_and_leaves_the_old_one_alone(command, memory_copy):
    opened_before = Memory.open(memory_copy)
    before = fingerprint(memory_copy / "index")
    assert command("index", memory_copy, "--target-recall", "0.5").code == 0
    after = fingerprint(memory_copy / "index")
    changed = {path for path in before if before[path] != after[path]}
    assert {path.rsplit("/", 1)[1] for path in changed} <= {"index.json"}
    assert Memory.open(memory_copy).snapshot.number == opened_before.snapshot.number + 1
    assert Memory.open(memory_copy).tuning("image")["target_recall"] == 0.5
    assert opened_before.tuning("image")["target_recall"] == 0.95


def test_verify_tells_of_damaged_records_instead_of_stumbling_over_them(command, memory_copy):
    (memory_copy / "commits" / "00001.json").write_text("{")
    (memory_copy / "commits" / "00002.json").unlink()
    next((memory_copy / "index").glob("*/index.json")).unlink()
    problems = json.loads(command("verify", memory_copy, "--json").out)["problems"]
    files = [problem["file"] for problem in problems]
    assert "commits/00001.json" in files
    assert "commits/00002.json" in files
    assert any(file.endswith("/index.json") for file in files)
    (memory_copy / "manifest.parquet").write_bytes(b"PAR1")
    ran = command("verify", memory_copy, "--json")
    assert ran.code == 1
    assert "manifest.parquet" in {problem["file"] for problem in json.loads(ran.out)["problems"]}


def tar_of(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_captions_that_look_like_markup_are_shown_as_they_are(command, tmp_path, model):
    shard = tar_of(tmp_path / "a.tar", {"a.txt": b"[INST] a cat [/INST] :cat:", "b.txt": b"[bold]x[/]"})
    flags = ("--memory", tmp_path / "m", "--model", model, "--require", "text")
    assert command("embed", shard, *flags).code == 0
    assert command("index", tmp_path / "m").code == 0  # a memory of texts: the text vectors are what there is
    ran = command("search", tmp_path / "m", "--text", "[/b] cat", "--keys", "text")
    assert ran.code == 0
    assert "[INST] a cat [/INST] :cat:" in ran.out
    assert "[bold]x[/]" in ran.out
    assert "--modality text" in errors(command, "index", tmp_path / "m", "--keys", "image")


def test_a_model_named_by_a_relative_path_is_found_from_elsewhere(command, small_shards, tmp_path, model, monkeypatch):
    folder = Path(model.removeprefix("local-dir:"))
    monkeypatch.chdir(folder.parent)
    shard = small_shards / "00000.tar"
    assert command("embed", shard, "--memory", tmp_path / "m", "--model", f"local-dir:{folder.name}").code == 0
    assert command("index", tmp_path / "m").code == 0
    monkeypatch.chdir(tmp_path)
    assert command("search", "m", "--text", "cat").code == 0


def test_a_transform_that_drops_dimensions_does_not_pass_for_exact(command, memory_copy):
    assert command("index", memory_copy, "--keys", "image", "--index-key", "PCA16,IVF4,Flat").code == 0
    memory = Memory.open(memory_copy)
    queries = memory.vectors([0, 1, 2], "image").astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)  # half precision leaves them short of 1 by some 1e-5
    hits = memory.search(vectors=queries, k=5)
    exact = np.einsum("qd,qkd->qk", queries, memory.vectors(hits.ids).reshape(3, 5, -1))
    np.testing.assert_allclose(hits.scores, exact, atol=1e-5)
    assert hits.ids[:, 0].tolist() == [0, 1, 2]
