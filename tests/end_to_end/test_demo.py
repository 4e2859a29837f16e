"""The demo: the main job on real pictures, through the code a user runs."""

import base64
import io
import re
from pathlib import Path

import pytest
from PIL import Image

from memory_builder import EncoderConfig, Memory
from memory_builder.demo.driver import TEXTS, K


@pytest.fixture(scope="module")
def demo(tmp_path_factory, command) -> Path:
    out = tmp_path_factory.mktemp("demo") / "out"
    ran = command("demo", "--out", out)
    assert ran.code == 0, ran.err
    assert ran.out.strip() == f"report: {out / 'report.html'}"
    return out


def test_the_demo_embeds_and_indexes_every_bundled_pair(demo, command):
    memory = Memory.open(demo / "memory")
    assert len(memory) == 2385
    assert {keys: view.n_rows for keys, view in memory.snapshot.indexes.items()} == {"image": 2385, "text": 2385}
    assert command("verify", demo / "memory").code == 0


def test_the_report_shows_every_query_with_ten_pictures_that_can_be_seen(demo):
    page = (demo / "report.html").read_text()
    sections = re.findall(r"<section class=\"row\">(.*?)</section>", page, re.S)
    assert len(sections) == len(TEXTS) + 6
    for section in sections:
        hits = section.split('<div class="strip">')[1]
        assert hits.count("<figure>") == K
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) == len(sections) * K + 6
    for picture in set(pictures):
        assert Image.open(io.BytesIO(base64.b64decode(picture))).size == (64, 64)
    assert "2,385; 0 rejects" in page
    assert "http" not in page


def test_the_report_shows_what_search_answers(demo, model):
    memory = Memory.open(demo / "memory", encoder=EncoderConfig(model=model))
    hits = memory.search(text=TEXTS[0], k=K)
    names = memory.rows(hits.ids)["caption"].to_pylist()
    section = re.findall(r"<section class=\"row\">(.*?)</section>", (demo / "report.html").read_text(), re.S)[0]
    assert re.findall(r'alt="([^"]*)"', section) == names


def test_every_bundled_picture_is_of_a_licence_that_allows_it(demo):
    import json

    memory = Memory.open(demo / "memory")
    ids = [(ordinal << 32) + i for ordinal, commit in memory.commits.items() for i in range(commit.n_written)]
    extra = memory.metadata(ids, ["extra"])["extra"].to_pylist()
    assert {json.loads(text)["licence_spdx"] for text in extra} <= {"CC0-1.0", "MIT", "Apache-2.0"}
