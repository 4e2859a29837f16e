"""The curve that tuning keeps is complete, and info draws it, in the terminal and as a picture."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image

from memory_builder.base.runner import LocalRunner
from memory_builder.cli import main
from memory_builder.indexing.config import IndexConfig
from memory_builder.indexing.curve import Curve, Point, curve_rows, frontier, read_curves
from memory_builder.indexing.driver import index as index_memory
from memory_builder.indexing.plot import plot
from memory_builder.memory import Memory


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, write_memory: Callable[..., Any], clustered: Any) -> Path:
    folder = tmp_path_factory.mktemp("memory")
    write_memory(folder, *clustered(1_500, 16, seed=0))
    config = IndexConfig(index_key="IVF8,PQ4x8np", train_threads=1)
    index_memory(str(folder), keys=("image", "text"), config=config, runner=LocalRunner())
    return folder


def point(work: float, recall: float, **more: Any) -> Point:
    found = {"1": recall, "10": recall}
    some = {"nprobe": 1, "refine": 1, "recall10_error": 0.0, "codes": 1.0, "rows_read": 1.0, "seconds": 0.0}
    return Point(**some | more, recall=found, strict_recall=found, work_bytes=work)


def test_no_point_of_the_frontier_is_beaten() -> None:
    points = [point(4, 0.9), point(1, 0.5), point(2, 0.4), point(3, 0.9), point(9, 0.95), point(9, 0.91)]
    assert [(p.work_bytes, p.recall["10"]) for p in frontier(points)] == [(1, 0.5), (3, 0.9), (9, 0.95)]


def test_all_four_curves_are_kept_with_recall_at_100_and_latency(root: Path) -> None:
    curves = read_curves(Memory.open(root).store)
    assert sorted(curve.name for curve in curves) == ["I2I", "I2T", "T2I", "T2T"]
    for curve in curves:
        assert curve.chosen is not None
        for kept in (*curve.points, curve.chosen):
            assert set(kept.recall) == set(kept.strict_recall) == {"1", "10", "100"}
            assert kept.p50_s is not None
            assert kept.p99_s is not None
            assert 0 < kept.p50_s <= kept.p99_s
        assert curve.points[-1].recall["100"] > 0.9
        recalls = [kept.recall["10"] for kept in curve.points]
        assert recalls == sorted(recalls)


def test_info_draws_the_curves(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(root)]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("T2I", "I2I", "T2T", "I2T"))
    assert out.count("◀ in use") == 4
    assert "█" in out


def test_a_curve_of_an_older_memory_lacks_what_was_not_measured() -> None:
    kept = point(5_000, 1.0)
    (row,) = curve_rows(Curve(query_modality="text", modality="image", points=(kept,), chosen=kept))
    assert (row["work"], row["@100"], row["p50 ms"]) == ("5 kB", "", "")
    assert b"nprobe 1" in plot(
        [Curve(query_modality="text", modality="image", points=(kept,), chosen=kept)], "m", ".svg"
    )


def test_pictures(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("curve.svg", "curve.html", "curve.png"):
        assert main(["info", str(root), "--plot", str(tmp_path / name)]) == 0
        assert str(tmp_path / name) in capsys.readouterr().out
    svg = (tmp_path / "curve.svg").read_text()
    assert len(ElementTree.fromstring(svg).findall("{*}polyline")) > 12
    assert (tmp_path / "curve.html").read_text().count("<svg") == 4
    width, height = re.findall(r'(?:width|height)="(\d+)"', svg)[:2]
    assert Image.open(io.BytesIO((tmp_path / "curve.png").read_bytes())).size == (2 * int(width), 2 * int(height))


def test_what_cannot_be_drawn(root: Path, tmp_path: Path, write_memory: Any, clustered: Any, capsys: Any) -> None:
    assert main(["info", str(root), "--plot", str(tmp_path / "curve.jpg")]) == 2
    assert ".png, .svg, .html" in capsys.readouterr().err
    write_memory(tmp_path / "bare", *clustered(10, 8, seed=0))
    assert main(["info", str(tmp_path / "bare"), "--plot", str(tmp_path / "curve.svg")]) == 2
    assert "memory-builder index" in capsys.readouterr().err
    assert main(["info", str(root), "--plot", str(tmp_path / "c.svg"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 1_500
