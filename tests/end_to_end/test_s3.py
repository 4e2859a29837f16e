"""Shards and memory on an object store, through the command; a real S3 server on this machine."""

import json

import pytest
import s3fs


@pytest.fixture
def bucket(s3, small_shards) -> str:
    """A prefix with three shards in it."""
    fs = s3fs.S3FileSystem(**s3.options)
    for name in ("00000.tar", "00001.tar", "00002.tar"):
        fs.put_file(str(small_shards / name), f"{s3.url}/shards/{name}")
    return s3.url


def test_the_main_job_on_an_object_store(command, bucket, model, tmp_path, monkeypatch, small_shards):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    memory = f"{bucket}/memory"
    ran = command("embed", f"{bucket}/shards/*.tar", "--memory", memory, "--model", model)
    assert ran.code == 0, ran.err
    assert "3/3 shards (3 embedded now), 150 rows" in ran.out
    ran = command("embed", f"{bucket}/shards/{{00000..00002}}.tar", "--memory", memory, "--model", model)
    assert "0 embedded now" in ran.out
    assert command("index", memory).code == 0
    info = json.loads(command("info", memory, "--json").out)
    assert (info["rows"], info["shards"]["done"], set(info["indexes"])) == (150, 3, {"image", "text"})
    assert command("verify", memory).code == 0
    asked = ("--text", "cat", "umbrella", "--json")
    far = command("search", memory, *asked)
    assert far.code == 0, far.err
    near = tmp_path / "memory"
    command("embed", *(small_shards / f"0000{i}.tar" for i in range(3)), "--memory", near, "--model", model)
    command("index", near)
    assert command("search", near, *asked).out.replace(str(small_shards), f"{bucket}/shards") == far.out
    classes = tmp_path / "classes.txt"
    classes.write_text("cat\numbrella\n")
    told = ("--classes", classes, "--mode", "both", "--per-query", 40, "--shard-pairs", 20, "--json")
    fs = s3fs.S3FileSystem()
    excluded = f"{bucket}/shards/00001.tar"
    ran = command("retrieve", memory, *told, "--exclude", excluded, "--out", f"{bucket}/subset")
    assert ran.code == 0, ran.err
    here = command("retrieve", near, *told, "--exclude", small_shards / "00001.tar", "--out", tmp_path / "subset")
    assert here.out == ran.out
    assert json.loads(here.out)["decontaminated"] >= 1
    tars = [path.name for path in (tmp_path / "subset").glob("*.tar")]
    assert tars
    for name in (*tars, "hits.parquet", "support.npy"):
        assert fs.cat_file(f"{bucket}/subset/{name}") == (tmp_path / "subset" / name).read_bytes(), name
    assert fs.exists(f"{bucket}/subset/subset.html")


@pytest.mark.usefixtures("s3")
def test_a_bucket_that_is_not_there(command, small_shards, model):
    ran = command("embed", small_shards / "00000.tar", "--memory", "s3://no-such-bucket/m", "--model", model)
    assert ran.code != 0
    assert "Traceback" not in ran.err
