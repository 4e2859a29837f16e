"""The commands of docs/reco.md in their order, and what ``evaluate reco`` finds against its definition."""

import contextlib
import io
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.bundled import ROOT
from helpers.evaluation_sets import CLASSES
from memory_builder.base.runner import LocalRunner
from memory_builder.cli import main
from memory_builder.embedding.config import EmbedConfig
from memory_builder.embedding.driver import embed
from memory_builder.errors import UsageError
from memory_builder.indexing.config import IndexConfig
from memory_builder.indexing.driver import index
from memory_builder.memory import Memory
from memory_builder.model.encoder import EncoderConfig
from memory_builder.readers.read import read_pairs
from memory_builder.storage.store import Store
from trainer.evaluate.results import read_predictions, read_results
from trainer.evaluate.with_memory.names import ClassNames
from trainer.reco.model import RecoModel

PAGE = ROOT / "docs" / "reco.md"
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.S) for line in block.splitlines()]


@pytest.fixture(scope="module")
def home(memory, shapes, captioned, tmp_path_factory):
    """What the page names."""
    home = tmp_path_factory.mktemp("reco-page")
    shutil.copytree(memory, home / "memory")
    shutil.copytree(memory, home / "other")
    shutil.copytree(memory.parent / "shards", home / "pairs")
    for folder in (shapes, captioned):
        shutil.copytree(folder, home / folder.name)
    keys = Memory.open(memory).rows(Memory.open(memory).row_ids(0))["key"]
    pq.write_table(pa.table({"key": keys, "cluster": np.arange(len(keys)) // 3}), home / "clusters.parquet")
    return home


@pytest.fixture(scope="module")
def printed(home):
    """Command → what it printed, of all commands of the page."""
    told = {}
    with contextlib.chdir(home):
        for line in COMMANDS:
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                assert main(shlex.split(line)[1:]) == 0, f"{line}: {err.getvalue()}"
            told[line] = out.getvalue(), err.getvalue()
    return told


def test_the_commands_of_the_page_run_and_tell_what_was_dropped(printed):
    first = next(out for line, (out, _) in printed.items() if line.endswith("--max-steps 20"))
    assert int(re.search(r"image same picture +(\d+)", first)[1]) >= 144  # the pairs are the memory's own pictures
    clustered = next(out for line, (out, _) in printed.items() if "--out few" in line)
    assert re.search(r"image same cluster +[1-9]", clustered)
    again = next(err for line, (_, err) in printed.items() if "--out more" in line)
    assert "neighbours: 1/1" in again


@pytest.fixture(scope="module")
def results(printed, home):
    assert printed
    return {result["method"]: result for result in read_results(Store(home / "run"))}


def test_the_python_of_the_page(printed, home, tmp_path):
    assert printed
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    shown = re.sub(r"^(model\.(\w+)\()", r"\2 = \1", block, flags=re.M)
    told = {}
    with contextlib.chdir(home):
        first = next(pair for tar in Path("pairs").glob("*.tar") for pair in read_pairs(str(tar)))
        Path("cat.png").write_bytes(first.image)
        exec(shown, told)
        model = told["model"]
        moved = shutil.copytree(
            json.loads((home / "run" / "config.json").read_text())["encoder"]["model"].removeprefix("local-dir:"),
            tmp_path / "model",
        )
        there = RecoModel.load("run", encoder=EncoderConfig(model=f"local-dir:{moved}"))
        assert np.array_equal(there.encode_text(["a cat"], told["memory"]), told["encode_text"])
    assert [told[name].shape for name in ("encode_image", "encode_text", "head")] == [
        (1, model.reco.d),
        (1, model.reco.d),
        (2, model.reco.d),
    ]
    assert not np.array_equal(model.encode_text(["a cat"]), told["encode_text"])


def test_a_classification_is_measured_without_with_either_and_with_both(results, home):
    assert list(results) == ["reco-both", "reco-image", "reco-text", "zero-shot"]
    opened, model = Memory.open(home / "memory"), RecoModel.load(str(home / "run"))
    folder = next((home / "run" / "eval" / "features").iterdir())
    images, names = np.load(folder / "images.npy"), list(CLASSES)
    templates = results["reco-both"]["dataset"]["templates"]
    refined = {True: model.refine(images, "image", opened), False: images}
    for method, (of_images, of_texts) in {
        "zero-shot": (False, False),
        "reco-image": (True, False),
        "reco-text": (False, True),
        "reco-both": (True, True),
    }.items():
        head = model.classifier(names, templates, opened if of_texts else None)
        answer = (refined[of_images] @ head.T).argmax(1)
        table = read_predictions(Store(home / "run"), results[method]["file"])
        told = np.array([top[0] for top in table["top_0"].to_pylist()])
        assert (answer == told).mean() > 0.97  # the head here is of float16 prompts


def test_every_answer_is_compared_and_shows_its_rows(results, home):
    for method in ("reco-image", "reco-text", "reco-both"):
        assert set(results[method]["extra"]) == {"against_zero_shot", "names_scrambled", "memory_scrambled"}
        table = read_predictions(Store(home / "run"), results[method]["file"])
        assert len(table["reasons"][0]) == 8
        assert results[method]["memory"]["pictures_in_memory"] == 0
    opened, names = Memory.open(home / "memory"), ClassNames(CLASSES)
    table = read_predictions(Store(home / "run"), results["reco-image"]["file"])
    shown = [
        names.label(text)
        for text in opened.rows([ids[0] for ids in table["reasons"].to_pylist()])["caption"].to_pylist()
    ]
    assert np.mean(np.array(shown) == np.array(table["label"])) > 0.3
    table = read_predictions(Store(home / "run"), results["reco-text"]["file"])
    given = zip(table["top_0"].to_pylist(), table["reasons"].to_pylist(), strict=True)
    answered = [(top[0], tuple(ids)) for top, ids in given]
    assert all(dict(answered)[answer] == ids for answer, ids in answered), "what the class found, whatever the picture"
    assert len({ids for _, ids in answered}) > 1


def test_captions_with_wrong_names_do_not_help(results):
    """The fusion reads captions: exchanging their names must move its answers."""
    told = results["reco-image"]
    as_it_is = told["figures"]["metrics"]["top1"]
    assert told["extra"]["memory_scrambled"]["metrics"]["top1"] < as_it_is


def test_captioned_pictures_are_retrieved(printed):
    lines = [
        json.loads(line) for line in next(out for line, (out, _) in printed.items() if "captioned" in line).splitlines()
    ]
    assert [line["method"] for line in lines] == ["retrieval", "reco-image", "reco-text", "reco-both"]
    assert all("image_to_text_recall@1" in line["metrics"] for line in lines)


@pytest.mark.usefixtures("printed")
def test_the_report_knows_it(home, tmp_path):
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["report", str(home / "run"), "--out", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "reco-both" in page
    assert "names scrambled everywhere" in page


@pytest.mark.usefixtures("printed")
@pytest.mark.parametrize("counted", [True, False])
def test_the_report_shows_recall_of_captioned_pictures(home, counted, tmp_path):
    """Also of runs that did not count the captions, as those before did not."""
    run = Path(shutil.copytree(home / "other-run", tmp_path / "run"))
    found = {}
    for path in (run / "eval").glob("*.json"):
        result = json.loads(path.read_text())
        found[result["method"]] = result["figures"]["metrics"]["image_to_text_recall@5"]
        assert result["dataset"].pop("n_captions") == 79
        if not counted:
            path.write_text(json.dumps(result))
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["report", str(run), "--out", str(tmp_path / "report.html")]) == 0
    rows = re.findall(r"<tr>.*?</tr>", (tmp_path / "report.html").read_text())
    assert len(found) == 4
    for method, recall in found.items():
        (row,) = [row for row in rows if f'<th scope="row">{method}</th>' in row]
        assert f"<b>{100 * recall:.1f}</b>" in row
    (counts,) = [row for row in rows if '<th scope="row">40</th>' in row]
    assert f"<td>{'79' if counted else 'not counted'}</td>" in counts


@pytest.mark.usefixtures("printed")
def test_a_run_on_an_object_store_keeps_its_answers_there(home, shapes, s3, tmp_path, monkeypatch, capsys):
    run = s3.store("run")
    for path in (home / "run" / "config.json", *(home / "run" / "checkpoints").glob("*/*")):
        run.put(str(path.relative_to(home / "run")), path.read_bytes())
    monkeypatch.chdir(tmp_path)
    given = ["--run", run.root, "--memory", str(home / "memory"), "--dataset", str(shapes)]
    assert main(["evaluate", "reco", *given]) == 0, capsys.readouterr().err
    assert len(read_results(run)) == 4
    assert len(run.list("eval/features", "directory")) == 1
    assert {path.name for path in tmp_path.iterdir()} <= {"cache"}


def k_of_both(run):
    return sorted(result["config"]["k"] for result in read_results(Store(run)) if result["method"] == "reco-both")


@pytest.mark.usefixtures("printed")
def test_results_asked_for_otherwise_lie_side_by_side_and_the_same_command_writes_over_its_own(home, tmp_path):
    run = Path(shutil.copytree(home / "run", tmp_path / "run"))
    given = ["evaluate", "reco", "--run", str(run), "--memory", str(home / "memory"), "--dataset", str(home / "shapes")]
    for path in (run / "eval").glob("*.json"):  # as they were written before
        old = json.loads(path.read_text().replace(str(home / "run"), str(run)))
        del old["asked"], old["memory"]["snapshot"], old["config"]["average"]
        path.write_text(json.dumps(old))
    with contextlib.redirect_stdout(io.StringIO()):
        for asked, there in ((["-k", "1"], [1, 10]), (["-k", "1"], [1, 10]), ([], [1, 10]), (["-k", "2"], [1, 2, 10])):
            assert main([*given, *asked]) == 0
            assert k_of_both(run) == there
        (path,) = (run / "eval").glob("reco-reco-both-*-test.json")
        assert json.loads(path.read_text())["asked"]["k"] == 10, "under the name it had"
        assert len(read_results(Store(run))) == 3 * 3 + 1, "the model alone is the same for every k"
        assert main(["report", str(run), "--out", str(tmp_path / "report.html")]) == 0
    rows = re.findall(r'<tr><th scope="row">([^<]*)</th>', (tmp_path / "report.html").read_text())
    assert rows.count("zero-shot") == 1
    assert {f"reco-both, k {k}" for k in (1, 2, 10)} < set(rows)


@pytest.mark.usefixtures("printed")
def test_fewer_neighbours_can_be_asked_for(home, shapes, tmp_path, capsys):
    given = ["evaluate", "reco", "--run", str(home / "run"), "--memory", str(home / "memory"), "--dataset", str(shapes)]
    assert main([*given, "--out", str(tmp_path / "one"), "-k", "1", "--json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    (record,) = (tmp_path / "one" / "eval").glob("reco-reco-both-*.json")
    assert json.loads(record.read_text())["config"]["k"] == 1
    assert main([*given, "--out", str(tmp_path / "none"), "-k", "0"]) == UsageError.exit_code
    assert "k 0" in capsys.readouterr().err


@pytest.mark.usefixtures("printed")
@pytest.mark.parametrize(
    ("dataset", "asked", "said"),
    [
        ("shapes", ["--positives", "caption"], "--positives is for retrieval sets"),
        ("captioned", ["--order", "refine-then-average"], "--order is for classification sets"),
    ],
)
def test_what_a_set_has_no_use_for_is_refused(home, dataset, asked, said, tmp_path, capsys):
    given = ["evaluate", "reco", "--run", str(home / "run"), "--memory", str(home / "memory")]
    assert main([*given, "--dataset", str(home / dataset), "--out", str(tmp_path), *asked]) == UsageError.exit_code
    assert said in capsys.readouterr().err


@pytest.mark.usefixtures("printed")
def test_a_memory_without_an_index_that_is_searched_is_refused_before_anything_is_written(home, tmp_path, capsys):
    encoder = EncoderConfig(**json.loads((home / "run" / "config.json").read_text())["encoder"])
    root, out = str(tmp_path / "memory"), tmp_path / "out"
    embed([Memory.open(home / "memory").source(0)], root, encoder=encoder, config=EmbedConfig(), runner=LocalRunner())
    index(root, keys=("image",), config=IndexConfig(), runner=LocalRunner())
    given = ["evaluate", "reco", "--run", str(home / "run"), "--memory", root, "--dataset", str(home / "shapes")]
    assert main([*given, "--out", str(out)]) == UsageError.exit_code
    assert re.search(r"memory has no text index, which .* searches with texts: run", capsys.readouterr().err)
    assert not out.exists()
