"""What is added to a memory has its settings for defaults; others are refused before a model is loaded."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(np.full((20, 20, 3), 60 * i, np.uint8)).save(folder / f"{i}.png")
    return folder


def test_a_folder_of_photos_alone_says_what_helps_and_may_be_read_otherwise(command, photos, tmp_path, model):
    """It gave no row, said nothing, and refused the flag that helps."""
    ran = command("embed", photos, "--memory", tmp_path / "m", "--model", model)
    assert ran.code == 0
    assert "rejects: 3 no caption; --require image takes pictures alone" in ran.out
    ran = command("embed", photos, "--memory", tmp_path / "m", "--model", model, "--require", "image")
    assert (ran.code, "holds no rows: it takes the new settings (require)" in ran.err) == (0, True)
    assert "3 rows, 0 rejects" in ran.out
    assert "3 rows have no caption" in ran.out
    assert json.loads((tmp_path / "m" / "memory.json").read_text())["config"]["require"] == "image"
    assert "note: 3 rows have no caption" in command("info", tmp_path / "m").out


def test_the_same_settings_need_not_be_repeated(command, photos, tmp_path, model):
    settings = ("--require", "image", "--columns", "n:int", "score:float")
    assert command("embed", photos, "--memory", tmp_path / "m", "--model", model, *settings).code == 0
    Image.fromarray(np.full((20, 20, 3), 222, np.uint8)).save(photos / "more.png")
    ran = command("embed", photos, f"--memory={tmp_path / 'm'}")
    assert (ran.code, "4 rows" in ran.out) == (0, True), ran.err
    ran = command("import", tmp_path / "m", "--memory", tmp_path / "m")
    assert (ran.code, "8 rows" in ran.out) == (0, True), ran.err


def test_other_settings_are_refused_without_loading_a_model(command, photos, tmp_path, model):
    assert command("embed", photos, "--memory", tmp_path / "m", "--model", model, "--require", "image").code == 0
    script = (
        "import sys; from memory_builder.cli import main\n"
        f"code = main(['embed', {str(photos)!r}, '--memory', {str(tmp_path / 'm')!r}, '--require', 'both'])\n"
        "assert 'torch' not in sys.modules and 'open_clip' not in sys.modules\n"
        "sys.exit(code)"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert "require: 'image' before, 'both' now" in ran.stderr


def test_hits_say_where_they_came_from_and_show_any_column(command, photos, tmp_path, model):
    """A row of a CSV could not be led back to its file."""
    listing = tmp_path / "list.csv"
    listing.write_text("path,caption,price\n" + "".join(f"photos/{i}.png,photo {i},{i}.5\n" for i in range(3)))
    memory = tmp_path / "m"
    assert command("embed", listing, "--memory", memory, "--model", model, "--columns", "price:float").code == 0
    assert command("index", memory).code == 0
    ran = command("search", memory, "--text", "photo 1", "--columns", "price", "--where", "price > 1", "--json")
    hits = json.loads(ran.out)["hits"]
    assert {hit["path"]: hit["price"] for hit in hits} == {f"{photos}/1.png": 1.5, f"{photos}/2.png": 2.5}
    assert f"{photos}/1.png" in command("search", memory, "--text", "photo 1").out
    ran = command("search", memory, "--text", "x", "--columns", "nope")
    assert (ran.code, "no column nope" in ran.err) == (2, True)
