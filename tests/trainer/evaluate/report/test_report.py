import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from helpers.browser import chromium, look
from memory_builder.base.pages import palette
from memory_builder.cli import main
from memory_builder.memory import Memory
from memory_builder.storage.store import Store
from trainer.evaluate.numbers.intervals import paired_difference
from trainer.evaluate.numbers.metrics import class_sums
from trainer.evaluate.report.entries import against, read_groups


@pytest.fixture(scope="module")
def run(memory, shapes, dev_shapes, captioned, many_labels, evaluate, tmp_path_factory) -> Path:
    """A run with a result of every task."""
    out = tmp_path_factory.mktemp("report") / "run"
    assert evaluate("zero-shot", "--dataset", shapes, "--out", out).code == 0
    assert evaluate("baselines", "--memory", memory, "--dataset", shapes, "--dev", dev_shapes, "--out", out).code == 0
    assert evaluate("linear-probe", "--dataset", shapes, "--out", out, "--shots", "1", "4", "all").code == 0
    assert evaluate("retrieval", "--dataset", captioned, "--out", out).code == 0
    assert evaluate("zero-shot", "--dataset", many_labels, "--out", out).code == 0
    return out


@pytest.fixture(scope="module")
def page(run, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    assert main(["report", str(run), "--out", str(path)]) == 0
    return path


def test_the_page_holds_every_result_and_asks_nothing_of_the_network(page):
    text = page.read_text()
    for said in ("zero-shot", "knn-name", "wise-head", "linear-probe, 4 shots", "top-1, rare", "mAP, 11 points"):
        assert said in text
    assert "text to image recall@10" in text
    assert "T2I: text to image" in text
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert "url(" not in text
    assert not re.findall(r'(?:fill|stroke)="#', text), "charts wear the page's colours"
    assert "@import" not in text
    assert set(re.findall(r"https?://[^\s\"'<]+", text)) <= {"http://www.w3.org/2000/svg"}


def test_numbers_of_the_page_are_those_of_the_results(run, page):
    (group,) = [group for group in read_groups([str(run)]) if group.dataset["name"] == "shapes"]
    text = page.read_text()
    for entry in group.of("zero-shot", "baselines", "linear-probe"):
        figures = entry.result["figures"]
        low, high = figures["ci95"]["top1"]
        shown = (
            f'<b>{100 * figures["metrics"]["top1"]:.1f}</b><span class="ci">{100 * low:.1f} to {100 * high:.1f}</span>'
        )
        assert shown in text
    assert [entry.method for entry in group.of("zero-shot")] == ["zero-shot"]
    assert len(group.of("zero-shot", "baselines")) == 9, "zero-shot, though two tasks measured it, once"


def test_what_differs_only_in_its_folders_is_told_apart_and_all_of_it_is_shown(run, tmp_path):
    roots = [str(shutil.copytree(run, tmp_path / place / "run")) for place in ("a", "b")]
    groups = [group for group in read_groups([*roots, roots[0]]) if group.dataset["name"] == "shapes"]
    labels = [entry.label for entry in groups[0].of("baselines")]
    assert sum(label.startswith("knn (") for label in labels) == 2
    assert {"knn (a/run)", "knn (b/run)"} < set(labels)
    (path,) = [
        path for path in (tmp_path / "a" / "run" / "eval").glob("baselines-knn-*.json") if "name" not in path.name
    ]
    result = json.loads(path.read_text())
    result["asked"]["memory"] = "/elsewhere/" + str(result["asked"]["memory"]).rsplit("/", 1)[-1]
    path.with_name("baselines-knn-of-another-test.json").write_text(json.dumps(result))
    (group,) = [group for group in read_groups(roots[:1]) if group.dataset["name"] == "shapes"]
    both = [entry.label for entry in group.of("baselines") if entry.method == "knn"]
    assert len(set(both)) == 2
    assert any("memory elsewhere/" in label for label in both)


def test_differences_are_paired_by_picture(run):
    (group,) = [group for group in read_groups([str(run)]) if group.dataset["name"] == "shapes"]
    zero_shot = group.zero_shot
    by_name = next(entry for entry in group.entries if entry.method == "knn-name")
    found = against(by_name, zero_shot)
    told = by_name.result["extra"]["against_zero_shot"]["all"]
    assert (found.value, found.low, found.p) == (told["value"], told["low"], told["p"])
    probe = next(entry for entry in group.entries if entry.shots == "4")
    ranks = [np.array(probe.predictions[f"rank_{seed}"]) == 0 for seed in range(3)]
    labels = probe.labels
    zero = np.array(zero_shot.predictions["rank_0"]) == 0
    expected = paired_difference(class_sums(np.mean(ranks, axis=0), labels), class_sums(zero, labels))
    assert against(probe, zero_shot) == expected
    assert against(zero_shot, zero_shot) is None


def test_the_gallery_shows_answers_that_changed_with_their_reasons(page):
    text = page.read_text()
    opened = re.findall(r"<summary>(\S+): (\d+) corrected, (\d+) broken</summary>", text)
    counts = {name: (int(right), int(spoilt)) for name, right, spoilt in opened}
    assert any(right > spoilt > 0 for right, spoilt in counts.values())
    assert "✓ right" in text
    assert "✗ wrong" in text
    card = re.search(r'<section class="card">.*?</section>', text, re.S)[0]
    assert card.count("data:image/webp;base64,") == 9, "the picture and eight rows"


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (1200, True), (360, False)])
def test_in_a_browser_it_fits_loads_nothing_and_has_both_themes(page, tmp_path, width, dark):
    told = look(page, tmp_path, width=width, dark=dark)
    assert width - 20 < told["width"] <= width, "but for a scroll bar"
    assert told["scrolls"] == told["width"], "the page itself must not scroll sideways"
    assert told["images"] > 20
    assert told["broken"] == told["loaded"] == 0
    assert told["tables"] >= 5
    assert "Answers that the memory changed" in told["text"]
    colours = palette(dark=dark)

    def rgb(colour: str) -> str:
        return f"rgb({', '.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))})"

    assert (told["ink"], told["paper"]) == (rgb(colours["ink"]), rgb(colours["paper"]))


def test_without_a_browser_the_test_is_skipped_unless_one_is_required(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("REQUIRE_BROWSER", raising=False)
    with pytest.raises(pytest.skip.Exception, match="is installed"):
        chromium()
    monkeypatch.setenv("REQUIRE_BROWSER", "1")
    with pytest.raises(pytest.fail.Exception, match="REQUIRE_BROWSER=1"):
        chromium()


def test_what_is_gone_is_said_and_the_rest_is_shown(run, shapes, memory, tmp_path):
    moved = [(shapes, shapes.with_name("hidden-set")), (memory, memory.with_name("hidden-memory"))]
    for path, hidden in moved:
        path.rename(hidden)
    try:
        assert main(["report", str(run), "--out", str(tmp_path / "report.html")]) == 0
    finally:
        for path, hidden in moved:
            hidden.rename(path)
    text = (tmp_path / "report.html").read_text()
    assert "Evaluation pictures are not shown" in text
    assert "Rows of the memory are not shown" in text
    assert "Search in the memory" not in text
    assert "wise-head" in text


@pytest.mark.parametrize("purge", [False, True])
def test_rows_that_were_deleted_since_are_not_shown(run, memory, page, tmp_path, purge):
    copied, other = (Path(shutil.copytree(root, tmp_path / root.name)) for root in (run, memory))
    for path in (copied / "eval").glob("*.json"):
        path.write_text(path.read_text().replace(str(memory), str(other)))
    opened = Memory.open(other)
    ids = opened.row_ids(0)
    gone = ids[: len(ids) // 2]
    captions = [str(caption) for caption in opened.rows(gone)["caption"].to_pylist() if caption != "untitled"]
    shown = re.findall(r"<figcaption>(drawing[^<]*)</figcaption>", page.read_text())
    assert set(shown) & set(captions)
    left = opened.delete(ids=gone)
    if purge:
        left.compact(purge=True)
    assert main(["report", str(copied), "--out", str(tmp_path / "report.html")]) == 0
    text = (tmp_path / "report.html").read_text()
    n_gone = sum(caption in captions for caption in shown)
    assert text.count('<span class="gone" aria-hidden="true"></span><figcaption>deleted</figcaption>') >= n_gone
    assert not set(captions) & set(re.findall(r"<figcaption>([^<]*)</figcaption>", text))
    assert text.count("data:image/webp") <= page.read_text().count("data:image/webp") - n_gone
    assert f"Rows of the memory are not shown that were deleted since: {other}" in text


def test_two_runs_stand_side_by_side_under_their_names(run, tmp_path):
    shutil.copytree(run, tmp_path / "second")
    out = tmp_path / "report.html"
    assert main(["report", str(run), str(tmp_path / "second"), "--out", str(out)]) == 0
    text = out.read_text()
    assert "knn (run)" in text
    assert "knn (second)" in text


def test_a_run_without_results_is_refused(tmp_path, capsys):
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "report.html")]) == 2
    assert "holds no result: run memory-builder evaluate" in capsys.readouterr().err
    Store(tmp_path).put("eval/odd.json", b"{}")
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "report.html")]) == 1
    assert "is no result of evaluate" in capsys.readouterr().err


def test_names_with_markup_stay_text(run, tmp_path):
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    for path in (copied / "eval").glob("*.json"):
        path.write_text(
            path.read_text().replace('"download"', '"<script>x</script>"').replace('"shapes"', '"<i>shapes"')
        )
    assert main(["report", str(copied), "--out", str(tmp_path / "report.html")]) == 0
    text = (tmp_path / "report.html").read_text()
    assert "<script>" not in text
    assert "&lt;i&gt;shapes" in text
