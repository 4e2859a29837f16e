"""Memories of strangers, opened here: nothing of this machine is shown, read or run because they say so."""

import io
import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from helpers.service import serving_at
from memory_builder import Memory
from memory_builder.catalog.trusted_sources import link_policy
from memory_builder.readers.fetch import Missing, PictureRef, read_pictures

PICTURE = io.BytesIO()
Image.new("RGB", (40, 30), "red").save(PICTURE, "PNG")


class Inside(BaseHTTPRequestHandler):
    """A server that only this machine is meant to reach."""

    seen: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.seen.append(self.path)
        self.send_response(302 if self.path == "/redirect" else 200)
        self.send_header("Location", "/picture.png")
        self.end_headers()
        self.wfile.write(PICTURE.getvalue())

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def inside() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Inside) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def imported(command: Any, folder: Path, urls: list[str]) -> Path:
    """A memory of a published folder whose metadata names these."""
    rows = np.eye(len(urls), 192, dtype=np.float16)
    for kind in ("img_emb", "metadata"):
        (folder / "laion" / kind).mkdir(parents=True)
    np.save(folder / "laion" / "img_emb" / "img_emb_0.npy", rows)
    table = pa.table({"url": urls, "caption": [f"row {i}" for i in range(len(urls))]})
    pq.write_table(table, folder / "laion" / "metadata" / "metadata_0.parquet")
    ran = command("import", folder / "laion", "--memory", folder / "memory")
    assert ran.code == 0, ran.err
    return folder / "memory"


def answer(url: str, host: str | None = None) -> tuple[int, bytes, str]:
    request = urllib.request.Request(url, headers={"Host": host} if host else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read(), response.headers["content-type"]
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers["content-type"]


def test_pictures_that_an_imported_table_names(command: Any, tmp_path: Path, inside: str) -> None:
    (tmp_path / "secret.txt").write_text("TOP SECRET")
    (tmp_path / "own.png").write_bytes(PICTURE.getvalue())
    os.mkfifo(tmp_path / "pipe")
    urls = [
        "/etc/passwd",
        f"file://{tmp_path}/secret.txt",
        "/proc/self/environ",
        f"http://{inside}/picture.png",
        f"http://{inside}/redirect",
        f"http://[::ffff:127.0.0.1]:{inside.split(':')[1]}/picture.png",
        f"http://localhost:{inside.split(':')[1]}/picture.png",
        "../secret.txt",
        "/dev/zero",
        f"{tmp_path}/pipe",
        f"simplecache::file://{tmp_path}/own.png",
        f"local://{tmp_path}/own.png",
        f"{tmp_path}/own.png",
    ]
    memory = imported(command, tmp_path, urls)
    with serving_at(memory) as url:
        for i, link in enumerate(urls):
            status, body, kind = answer(f"{url}/pictures/{i}")
            assert (status, kind) == (404, "application/json"), link
            assert b"SECRET" not in body
            assert "its picture is" in json.loads(body)["error"]
    assert Inside.seen == []
    with serving_at(memory, "--local-root", str(tmp_path), "--allow-host", inside) as url:
        answers = [answer(f"{url}/pictures/{i}") for i in range(len(urls))]
        shown = [i for i, (status, _, _) in enumerate(answers) if status == 200]
        assert shown == [3, 4, 12]  # a secret that is no picture stays one, and so does what is not in the root
        assert all(answers[i] == (200, PICTURE.getvalue(), "image/png") for i in shown)
        assert b"not shown (not an image)" in answers[1][1]


NAMES = [
    "member",
    "url",
    "uri",
    "image_path",
    "path",
    "file_name",
    "source",
    "has_image",
    "key",
    "image_url",
    "URL",
    "ref",
]
"""Columns by which a published table may try to name a picture."""


@pytest.mark.parametrize("kind", ["parquet", "lance", "laion"])
def test_published_tables_of_every_kind_name_nothing_of_this_machine(
    command: Any, tmp_path: Path, inside: str, kind: str
) -> None:
    (tmp_path / "own.png").write_bytes(PICTURE.getvalue())
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / "beside.png").write_bytes(PICTURE.getvalue())
    links = [f"{tmp_path}/own.png", "beside.png", "../own.png", f"file://{tmp_path}/own.png", f"HTTP://{inside}/a.png"]
    links += [f"http://{inside}/a.png", "row 0", "#folder=", f"{tmp_path}#folder="]
    vectors = np.eye(len(links), 192, dtype=np.float32)
    table = pa.table(dict.fromkeys(NAMES, links) | {"caption": [f"row {i}" for i in range(len(links))]})
    with_vectors = table.append_column("image_vector", pa.FixedSizeListArray.from_arrays(vectors.ravel(), 192))
    published = tmp_path / "published"
    if kind == "laion":
        for folder in ("img_emb", "metadata"):
            (published / folder).mkdir()
        np.save(published / "img_emb" / "img_emb_0.npy", vectors)
        pq.write_table(table, published / "metadata" / "metadata_0.parquet")
    elif kind == "parquet":
        pq.write_table(with_vectors, published / "a.parquet")
    else:
        published = published / "a.lance"
        pytest.importorskip("lance").write_dataset(with_vectors, str(published))
    ran = command("import", published, "--memory", tmp_path / "memory")
    assert ran.code == 0, ran.err
    before = len(Inside.seen)
    with serving_at(tmp_path / "memory") as url:
        for i, link in enumerate(links):
            status, body, answered = answer(f"{url}/pictures/{i}")
            assert (status, answered) == (404, "application/json"), (link, body[:100])
    assert len(Inside.seen) == before


def test_an_own_memory_that_a_stranger_changed_names_what_lies_in_its_own_folder_alone(
    command: Any, tmp_path: Path, model: str, inside: str
) -> None:
    """Its commits say truly what was embedded from here; its rows may say anything by now."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for path in (folder / "a.png", tmp_path / "secret.png"):
        path.write_bytes(PICTURE.getvalue())
    (folder / "a.txt").write_text("red")
    (folder / "notes.md").write_text("TOP SECRET")
    (folder / "out.png").symlink_to(tmp_path / "secret.png")
    memory = tmp_path / "memory"
    ran = command("embed", folder, "--memory", memory, "--model", model)
    assert ran.code == 0, ran.err
    path = memory / "metadata" / "metadata_00000.parquet"
    table = pq.read_table(path)
    at = table.column_names.index("member")
    members = [
        "out.png",
        "../secret.png",
        f"{tmp_path}/secret.png",
        "notes.md",
        "/etc/passwd",
        f"http://{inside}/a.png",
    ]
    members += [f"file://{tmp_path}/secret.png", "./../secret.png", "a.png/../../secret.png", "\0", "a.png\0", "", "."]
    before = len(Inside.seen)
    with serving_at(memory) as url:
        assert answer(f"{url}/pictures/0")[0] == 200
    for member in members:
        kind = table.schema.field(at)
        changed = pa.array([member] * len(table), kind.type)
        pq.write_table(table.set_column(at, kind, changed), path)
        opened = Memory.open(memory)
        (row,) = opened.metadata([0], ["member", "url", "sha256", "has_image"]).to_pylist()
        policy = link_policy(opened.commits.values())
        assert policy.sources
        ((_, picture),) = read_pictures(opened.source(0), [PictureRef.of(row)], policy)
        assert isinstance(picture, Missing) or picture == b"TOP SECRET", member  # which no service shows: no picture
    assert len(Inside.seen) == before


@pytest.mark.parametrize("kind", ["folder", "uri", "tar"])
def test_commits_that_name_other_files_of_this_machine(
    command: Any, tmp_path: Path, model: str, kind: str, small_shards: Path
) -> None:
    """A stranger's memory was embedded on their machine: its commits and members are free text here."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "private.png").write_bytes(PICTURE.getvalue())
    (tmp_path / "theirs" / "in").mkdir(parents=True)
    (tmp_path / "theirs" / "in" / "a.png").write_bytes(PICTURE.getvalue())
    (tmp_path / "theirs" / "in" / "a.txt").write_text("red")
    memory = tmp_path / "memory"
    ran = command("embed", tmp_path / "theirs", "--memory", memory, "--model", model)
    assert ran.code == 0, ran.err
    with serving_at(memory) as url:  # as long as it is one's own, it is shown
        assert answer(f"{url}/pictures/0")[0] == 200
    commit = json.loads((memory / "commits" / "00000.json").read_text())
    if kind == "folder":
        commit["uri"] = f"{tmp_path}/mine#folder="
    elif kind == "uri":
        commit["uri"] = f"{tmp_path}/mine/list.csv"
    else:
        commit["uri"] = str(small_shards / "00000.tar")
    (memory / "commits" / "00000.json").write_text(json.dumps(commit))
    (memory / "manifest.parquet").unlink()
    path = memory / "metadata" / "metadata_00000.parquet"
    for member in ("private.png", f"{tmp_path}/mine/private.png", "../mine/private.png"):
        table = pq.read_table(path)
        at = table.column_names.index("member")
        pq.write_table(
            table.set_column(at, table.schema.field(at), pa.array([member], table.schema.field(at).type)), path
        )
        with serving_at(memory) as url:
            status, body, _ = answer(f"{url}/pictures/0")
            assert status == 404, body
    if kind == "folder":
        with serving_at(memory, "--local-root", str(tmp_path / "mine")) as url:
            assert answer(f"{url}/pictures/0")[0] == 200  # ../mine/private.png of mine/ lies in mine/, which is named
        with serving_at(memory, "--local-root", str(tmp_path / "theirs")) as url:
            assert answer(f"{url}/pictures/0")[0] == 404


def test_a_row_of_text_alone_has_no_picture(command: Any, tmp_path: Path, model: str) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a cat")
    ran = command("embed", tmp_path / "texts", "--memory", tmp_path / "memory", "--model", model, "--require", "text")
    assert ran.code == 0, ran.err
    with serving_at(tmp_path / "memory") as url:
        status, body, _ = answer(f"{url}/pictures/0")
        assert status == 404
        assert b"a cat" not in body
