"""``memory-builder serve`` as a process of its own, asked by programs, by Python and in a browser."""

import base64
import concurrent.futures
import io
import json
import re
import shlex
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.browser import chromium
from helpers.bundled import ROOT
from helpers.service import serving_at
from memory_builder import Memory, MemoryBuilderError, RemoteMemory, UsageError
from memory_builder.errors import ConnectionFailedError
from memory_builder.readers.read import Pair, read_pairs
from memory_builder.storage.formats import npy_bytes

PAGE = (ROOT / "docs" / "serve.md").read_text()


@pytest.fixture(scope="module")
def url(built_memory: Path) -> Iterator[str]:
    with serving_at(built_memory, "--max-k", "100") as url:
        yield url


@pytest.fixture(scope="module")
def here(built_memory: Path) -> Memory:
    return Memory.open(built_memory)


@pytest.fixture(scope="module")
def there(url: str) -> RemoteMemory:
    return RemoteMemory.open(url)


def pairs_of(tar: Path) -> dict[str, Pair]:
    return {pair.key: pair for pair in read_pairs(str(tar)) if isinstance(pair, Pair)}


def post(url: str, body: object) -> tuple[int, dict]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_the_question_of_the_page_with_the_recall_that_was_measured(url: str, here: Memory) -> None:
    (line,) = re.findall(r"^curl .*", PAGE, re.M)
    body = json.loads(shlex.split(line)[-1])
    status, told = post(f"{url}/search", body)
    assert status == 200
    hits = here.search(text=body["text"], k=body["k"])
    assert [hit["id"] for hit in told["queries"][0]["hits"]] == hits.ids[0].tolist()
    assert told["queries"][0]["hits"][0].keys() == {"score", "id", "key", "caption", "url", "path"}
    measured = here.tuning("image")["sides"]
    assert told["stated"]["recall@10"] == pytest.approx(measured["text"]["recall@10"], abs=1e-4)
    assert told["snapshot"] == here.snapshot.number
    _, told = post(f"{url}/search", {"vectors": here.vectors(hits.ids[0]).tolist(), "k": 1})
    assert [answer["hits"][0]["id"] for answer in told["queries"]] == hits.ids[0].tolist()
    lesser = min(side["recall@10"] for side in measured.values())
    assert told["stated"]["recall@10"] == pytest.approx(lesser, abs=1e-4)  # of vectors it is not known what they are
    _, told = post(f"{url}/search", {"text": "cat", "nprobe": 1})
    assert told["stated"] is None  # nothing was measured at a setting of one's own


def test_python_asks_it_as_it_asks_a_memory(there: RemoteMemory, here: Memory, small_shards: Path) -> None:
    pairs = pairs_of(small_shards / "00000.tar")
    picture = next(iter(pairs.values())).image
    vectors = here.vectors(here.row_ids(1))
    asked = [
        {"text": "a cat"},
        {"text": ["a cat", "a bus"], "modality": "text", "k": 3},
        {"image": picture},
        {"image": [picture, picture], "where": "caption LIKE '%a%'"},
        {"vectors": vectors, "side": "image", "k": 7},
        {"vectors": vectors[0], "nprobe": 1, "refine": 0},
        {"vectors": vectors[:1], "where": "key = 'nothing'"},
    ]
    for question in asked:
        mine, theirs = here.search(**question), there.search(**question)
        np.testing.assert_array_equal(theirs.ids, mine.ids, err_msg=str(question.keys()))
        np.testing.assert_allclose(theirs.scores, mine.scores, atol=1e-6)
    ids = here.search(text="a cat", k=20).ids
    assert there.rows(ids).equals(here.rows(ids))
    assert there.rows(ids, ["caption"]).column_names == ["id", "caption"]
    np.testing.assert_array_equal(there.vectors(ids, "text"), here.vectors(ids, "text"))
    assert len(there) == len(here)
    assert (there.description, there.snapshot) == (here.description, here.snapshot)
    first = int(here.row_ids(0)[0])
    assert there.picture(first) == pairs[here.rows([first])["key"][0].as_py()].image


def test_more_than_a_request_may_ask_for_goes_out_in_several(
    there: RemoteMemory, here: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = here.vectors(here.row_ids(1))
    monkeypatch.setattr("memory_builder.remote.ROWS", 30)
    mine, theirs = here.search(vectors=vectors, k=7), there.search(vectors=vectors, k=7)
    np.testing.assert_array_equal(theirs.ids, mine.ids)
    np.testing.assert_array_equal(theirs.scores, mine.scores)
    assert there.rows(mine.ids).equals(here.rows(mine.ids))
    np.testing.assert_array_equal(there.vectors(mine.ids), here.vectors(mine.ids))
    assert there.search(vectors=vectors[0], k=50).ids.shape == (1, 50)
    monkeypatch.setattr("memory_builder.remote.BYTES", 5 * 4 * here.description.d)  # five vectors a request
    np.testing.assert_array_equal(there.search(vectors=vectors, k=2).ids, mine.ids[:, :2])
    np.testing.assert_array_equal(there.vectors(mine.ids), here.vectors(mine.ids))
    assert there.search(text="cat", k=np.int64(3)).ids.shape == (1, 3)
    assert there.vectors([]).shape == (0, here.description.d)
    assert there.rows([]).num_rows == 0


def test_many_at_a_time_get_the_answers_that_one_gets(there: RemoteMemory, here: Memory) -> None:
    words = [f"{word} {i}" for i in range(10) for word in ("cat", "bus", "tree")]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda word: there.search(text=word).ids[0].tolist(), words))
    assert found == [here.search(text=word).ids[0].tolist() for word in words]


@pytest.mark.parametrize(
    ("question", "says"),
    [
        ({"text": "cat", "image": "AA=="}, "exactly one of text, image and vectors"),
        ({}, "exactly one"),
        ({"text": ["cat"], "k": 101}, "the largest k is 100"),
        ({"text": ["cat"] * 1_001, "k": 100}, "at most 1000 items"),
        ({"text": "cat", "k": 100, "refine": 2_001}, "at most 200,000 re-ranked candidates a query"),
        ({"text": "cat", "k": 0}, "k: Input should be greater than or equal to 1"),
        ({"text": "cat", "modality": "sound"}, "modality: Input should be 'image' or 'text'"),
        ({"text": "cat", "keys": "sound"}, "keys: Input should be 'image' or 'text'"),
        ({"text": "cat", "modality": "image", "keys": "text"}, "keys is the former name of modality, give one"),
        ({"text": "cat", "colour": "red"}, "colour: Extra inputs are not permitted"),
        ({"text": "cat", "where": "weight > 3"}, "weight"),
        ({"image": "not base64!"}, "not base64"),
        ({"image": base64.b64encode(b"no picture").decode()}, "cannot use the query image"),
        ({"vectors": [[1.0, 2.0]]}, r"this memory takes [q, 192]"),
        (b"{", "Invalid JSON"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_the_reason(url: str, question: object, says: str) -> None:
    status, told = post(f"{url}/search", question)
    assert status == 400
    assert says in told["error"]


def test_keys_is_the_former_name_of_modality(url: str, here: Memory) -> None:
    ids = here.row_ids(0)[:3]
    bodies = {"search": here.vectors(ids, "text"), "vectors": ids}
    for path, body in bodies.items():
        answers = {
            query: _bulk(f"{url}/bulk/{path}?{query}", body)
            for query in ("modality=text", "keys=text", "modality=text&keys=text", "modality=image", "keys=image", "")
        }
        assert {status for status, _ in answers.values()} == {200}
        assert answers["modality=text"] == answers["keys=text"] == answers["modality=text&keys=text"]
        assert answers["modality=image"] == answers["keys=image"] == answers[""] != answers["keys=text"]
        status, said = _bulk(f"{url}/bulk/{path}?modality=text&keys=image", body)
        assert (status, b"give one" in said) == (400, True)
    with_text = {"text": "cat", "k": 3}
    told = {name: post(f"{url}/search", with_text | {name: "text"})[1] for name in ("modality", "keys")}
    assert told["modality"] == told["keys"] != post(f"{url}/search", with_text)[1]
    with urllib.request.urlopen(f"{url}/openapi.json") as response:
        described = json.load(response)
    question = described["paths"]["/search"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert question["properties"]["keys"]["deprecated"]
    assert question["properties"]["modality"]["default"] == "image"
    for path in bodies:
        names = {one["name"]: one for one in described["paths"][f"/bulk/{path}"]["post"]["parameters"]}
        assert "former name" in json.dumps(names["keys"])
        assert "deprecated" in json.dumps(names["keys"])
        assert "deprecated" not in json.dumps(names["modality"])


def _bulk(url: str, array: np.ndarray) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, npy_bytes(array))) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_bulk_bodies_that_hold_something_else(url: str, there: RemoteMemory) -> None:
    assert post(f"{url}/bulk/search", b"nonsense")[1]["error"].startswith("the body is not a .npy file")
    for path, array in (("search", np.array([["a"]])), ("vectors", np.zeros(2)), ("rows?columns=key", np.zeros(2))):
        with pytest.raises(UsageError, match="the body holds"):
            there._send("POST", f"/bulk/{path}", body=npy_bytes(array))
    for path, array, most in (
        ("search?k=100", np.zeros((20_001, 2)), "2,000,000"),
        ("rows?columns=key", np.zeros(2_000_001, np.int8), "2,000,000"),
        ("vectors", np.zeros(349_526, np.int8), "349,525"),  # 256 MiB of 192 floats
    ):
        with pytest.raises(UsageError, match=f"rows: at most {most} in one request"):
            there._send("POST", f"/bulk/{path}", body=npy_bytes(array))
    assert post(f"{url}/bulk/search", b"PK\x03\x04 no archive")[1]["error"].startswith("the body is not a .npy file")
    with pytest.raises(UsageError, match="not in"):
        there.vectors([1 << 40])
    with pytest.raises(UsageError, match="query vectors are not numbers"):
        there.search(vectors=[[1.0], [1.0, 2.0]])
    with pytest.raises(UsageError, match="no row has this id"):
        there.picture(1 << 40)
    with pytest.raises(UsageError, match="no column colour"):
        there.rows([0], ["colour"])


def test_what_is_deleted_is_gone_soon_and_too_long_a_body_is_refused(memory_copy: Path) -> None:
    with serving_at(memory_copy, "--refresh-s", "0") as url:
        there = RemoteMemory.open(url)
        first = int(there.search(text="cat").ids[0, 0])
        Memory.open(memory_copy).delete(ids=[first])
        assert first not in there.search(text="cat", k=100).ids
        assert there.snapshot.number == 2
        with pytest.raises(UsageError, match="no row has this id"):
            there.picture(first)
        (memory_copy / "metadata").rename(memory_copy / "gone")
        with pytest.raises(MemoryBuilderError):
            there.search(text="cat", where="caption LIKE '%a%'")
        assert there.search(text="cat").ids.shape == (1, 10)  # and it goes on


def test_who_is_not_there_or_is_something_else() -> None:
    with pytest.raises(ConnectionFailedError, match="no service answers at"):
        RemoteMemory.open("http://127.0.0.1:9", timeout_s=1)
    with pytest.raises(UsageError, match="expected the http:// address"):
        RemoteMemory.open("memory")


def test_a_picture_that_is_turned_is_asked_for_as_it_is_seen(
    there: RemoteMemory, here: Memory, small_shards: Path
) -> None:
    data = next(iter(pairs_of(small_shards / "00000.tar").values())).image
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.open(io.BytesIO(data)).convert("CMYK").save(stream := io.BytesIO(), "jpeg", exif=exif)
    turned = Image.open(stream)
    np.testing.assert_array_equal(there.search(image=turned).ids, here.search(image=turned).ids)


def test_it_cannot_be_started_so(command, built_memory: Path, tmp_path: Path) -> None:
    assert "no memory at" in command("serve", tmp_path).err
    assert "--refresh-s" not in command("serve", built_memory, "--max-k", "0").out
    assert "max_k 0: expected at least 1" in command("serve", built_memory, "--max-k", "0").err
    assert "cannot listen" in command("serve", built_memory, "--host", "203.0.113.1").err
    assert "replicas need a known port" in command("serve", built_memory, "--replicas", "1", "--port", "0").err


def test_the_page_shows_what_was_found_with_its_pictures(url: str, here: Memory, tmp_path: Path) -> None:
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    address = f"{url}/?text=cat&k=6"
    done = subprocess.run(
        [chromium(), *flags, "--virtual-time-budget=15000", "--dump-dom", address],
        capture_output=True,
        text=True,
        timeout=120,
    )
    hits = here.search(text="cat", k=6).ids[0].tolist()
    assert re.findall(r'src="pictures/(\d+)"', done.stdout) == [str(row) for row in hits]  # without src: not loaded
    assert re.search(r"6 rows, recall@10 of such queries \d+\.\d %", done.stdout)
    assert f"{len(here):,} rows" in done.stdout


def test_the_python_of_the_page(url: str, built_memory: Path, tmp_path: Path, command, monkeypatch) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    how = ("--out", tmp_path / "fusion", "--epochs", 1, "--batch-size", 64, "-k", 3, "--max-steps", 2)
    trained = command("train", "reco", built_memory, "--train", built_memory, *how)
    assert trained.code == 0, trained.err
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(block.replace("http://127.0.0.1:8000", url), names)
    assert names["hits"].ids.shape == (1, 10)
    model = names["mb"].load_reco("fusion")
    np.testing.assert_allclose(names["refined"], model.encode_text(["red panda"], Memory.open(built_memory)), atol=1e-6)
