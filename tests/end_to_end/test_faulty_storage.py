"""Storage that answers a fifth of all requests with 500, 503, half an answer, or none at all."""

import hashlib
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import s3fs

from helpers.faulty_proxy import Faults, faulty_proxy
from memory_builder.storage.filesystem import RETRIES, open_filesystem
from memory_builder.storage.store import Store

SAME = ("img_emb", "text_emb", "metadata", "rows", "rejects")


@pytest.fixture
def faults() -> Faults:
    return Faults(share=0.2, seed=7)


@pytest.fixture
def endpoint(s3_endpoint, faults, monkeypatch) -> Iterator[str]:
    """The proxy, where the environment now leads to."""
    monkeypatch.setattr(s3fs.S3FileSystem, "read_timeout", 1)  # below what a stalled request takes
    with faulty_proxy(s3_endpoint, faults) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        s3fs.S3FileSystem.clear_instance_cache()
        RETRIES.take()
        yield url
    s3fs.S3FileSystem.clear_instance_cache()


def digests(files: dict[str, bytes]) -> dict[str, str]:
    return {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}


def test_embed_finishes_and_counts_what_it_had_to_ask_again(
    command, s3, endpoint, faults, small_shards, built_memory, model
):
    bucket = s3fs.S3FileSystem(**s3.options)  # behind the proxy
    prefix = s3.url.removeprefix("s3://")
    for i in range(2):
        bucket.put_file(str(small_shards / f"0000{i}.tar"), f"{prefix}/0000{i}.tar", ACL="public-read")
    sources = [f"{endpoint}/{prefix}/00000.tar", f"{s3.url}/00001.tar"]  # two kinds of filesystem
    ran = command("embed", *sources, "--memory", f"{s3.url}/memory", "--model", model)
    assert ran.code == 0, ran.err
    assert "2/2 shards (2 embedded now), 100 rows" in ran.out
    n_bad = faults.seen.total() - faults.seen["fine"]
    n_retries = int(re.search(r"(\d+) requests retried", ran.out)[1])
    assert n_bad >= 5
    assert 0.4 * n_bad <= n_retries <= n_bad  # s3fs itself asks again for a body that broke off, uncounted
    info = json.loads(command("info", f"{s3.url}/memory", "--json").out)
    assert 0 < info["retries"] <= n_retries
    assert info["shards"] == {"done": 2, "partial": 0, "failed": 0, "pending": 0}
    found = {f"{d}/{name}": bucket.cat_file(f"{prefix}/memory/{d}/{name}") for d in SAME for name in listed(s3, d)}
    expected = {path: (Path(built_memory) / path).read_bytes() for path in found}
    assert len(found) == 2 * len(SAME)
    assert digests(found) == digests(expected)


def listed(s3, folder: str) -> list[str]:
    return s3.store(f"memory/{folder}").list("")


@pytest.mark.parametrize("faults", [Faults(share=0.5, seed=1, kinds=("answer lost",), weights=(1,))])
@pytest.mark.usefixtures("endpoint")
def test_a_create_whose_answer_was_lost_has_not_lost(s3, faults):
    store = Store(s3.url)
    others = Store(s3.url, key="testing", secret="testing")

    def create(writer: Store, n: int) -> bool:
        try:
            writer.create(f"names/{n}", f"{id(writer)} {n}".encode())
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(4) as threads:
        won = [[threads.submit(create, writer, n) for n in range(8)] for writer in (store, others)]
    assert [a.result() + b.result() for a, b in zip(*won, strict=True)] == [1] * 8
    for n in range(8):
        winner = store if won[0][n].result() else others
        assert store.read(f"names/{n}") == f"{id(winner)} {n}".encode()
    assert faults.seen["answer lost"] >= 5


def test_a_file_behind_http_is_read_whole(s3, endpoint, small_shards):
    path, key = small_shards / "00000.tar", f"{s3.url.removeprefix('s3://')}/00000.tar"
    s3fs.S3FileSystem(**s3.options).put_file(str(path), key, ACL="public-read")
    fs, url = open_filesystem(f"{endpoint}/{key}")
    with fs.open(url, "rb", block_size=30_000, cache_type="bytes") as file:
        pieces = iter(lambda: file.read(30_000), b"")
        assert b"".join(pieces) == path.read_bytes()
    assert RETRIES.take() >= 2


@pytest.mark.parametrize("faults", [Faults(share=1.0, seed=1, kinds=("503",), weights=(1,))])
def test_storage_that_is_down_ends_the_run_with_an_error(command, s3, endpoint, small_shards, model, monkeypatch):
    monkeypatch.setattr("memory_builder.storage.filesystem.ATTEMPTS", 2)
    ran = command("embed", small_shards / "00000.tar", "--memory", f"{s3.url}/memory", "--model", model)
    assert ran.code == 1
    assert f"error: cannot use {s3.url}/memory/memory.json" in ran.err
    assert "Traceback" not in ran.err
    fs, path = open_filesystem(f"{endpoint}/memories/a.tar")
    with pytest.raises(Exception, match="503"):
        fs.cat_file(path)
