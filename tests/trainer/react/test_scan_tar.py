"""A subset's pairs are found tar by tar, whatever lies in the tars, and a killed run goes on with the next one."""

import json
import shutil
import tarfile

import numpy as np
import pyarrow as pa
import pytest

from helpers.tiny_runs import write_subset
from memory_builder.storage.formats import parquet_bytes
from memory_builder.storage.store import Store
from trainer.loop.distributed import World
from trainer.react import subset
from trainer.react.scan_tar import scan_tar
from trainer.react.subset import open_subset, prepare_pairs, read_picture, scan_tars


def described(icons, fields):
    """A pair whose json says this."""
    return icons[0] | {"json": json.dumps(fields).encode()}


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"claims": [{"class": "cat"}, {"class": "dog"}], "class": "bird"}, "cat"),
        ({"class": "cat"}, "cat"),
        ({"class": 3}, "3"),
        ({"class": 0.5}, "0.5"),
        ({"class": True}, None),
        ({"class": ["a", "b"]}, None),
        ({"class": float("nan")}, None),
        ({"class": "\ud800cat"}, "?cat"),
        ({"claims": "yes"}, None),
        ({"claims": {"a": 1}, "class": 3}, "3"),
        ({"claims": [], "class": "cat"}, "cat"),
        ({"claims": [{"text": "made of wool"}], "class": "cat"}, "cat"),
        ({"claims": ["made of wool"], "class": "cat"}, "cat"),
        ({}, None),
    ],
)
def test_whatever_a_pairs_json_says_of_claims_and_class_it_is_a_pair(icons, tmp_path, fields, name):
    found = open_subset(str(write_subset(tmp_path / "plain", [described(icons, fields)], n_tars=1)))
    assert prepare_pairs(found, Store(tmp_path / "cache")).table["class"].to_pylist() == [name]


@pytest.fixture
def tars(icons, tmp_path):
    """Ten pairs in three tars, one of them empty, and a damaged picture."""
    folder = write_subset(tmp_path / "subset", [*icons[:9], icons[9] | {"png": icons[9]["png"][:-40]}])
    tarfile.open(folder / "00000a.tar", "w").close()
    return open_subset(str(folder))


def files_of(cache):
    return {path.relative_to(cache): path.read_bytes() for path in cache.rglob("*") if path.is_file()}


def test_the_table_is_that_of_all_tars_in_their_order(tars, tmp_path):
    pairs = prepare_pairs(tars, Store(tmp_path / "cache"))
    assert pairs.table["shard"].to_pylist() == [0] * 5 + [2] * 4
    assert pairs.rejects == {"image is damaged": 1}
    (stored,) = (tmp_path / "cache").glob("pairs/*/pairs.parquet")
    tables = [scan_tar(uri, shard)[0] for shard, uri in enumerate(tars.shards)]
    assert stored.read_bytes() == parquet_bytes(pa.concat_tables(tables))


def test_killed_between_tars_it_goes_on_to_the_same_bytes(tars, tmp_path, monkeypatch, capsys):
    whole, cache = tmp_path / "whole", tmp_path / "cache"
    prepare_pairs(tars, Store(whole))
    assert "pairs: 0/3 tars\n" in capsys.readouterr().err
    scanned, is_up = [], []

    def dies(uri, shard):
        if shard == 2 and not is_up:
            raise KeyboardInterrupt
        scanned.append(shard)
        return scan_tar(uri, shard)

    monkeypatch.setattr(subset, "scan_tar", dies)
    with pytest.raises(KeyboardInterrupt):
        prepare_pairs(tars, Store(cache))
    is_up.append(True)
    capsys.readouterr()
    prepare_pairs(tars, Store(cache))
    assert scanned == [0, 1, 2]
    assert "pairs: 2/3 tars\n" in capsys.readouterr().err
    assert files_of(cache) == files_of(whole)


def test_workers_share_the_tars(tars, tmp_path, monkeypatch):
    cache, scanned = tmp_path / "cache", []
    monkeypatch.setattr(subset, "scan_tar", lambda uri, shard: scanned.append(shard) or scan_tar(uri, shard))
    monkeypatch.setattr("trainer.loop.distributed.wait_for_all", lambda: scanned.append("waits"))
    for rank in (1, 0):
        monkeypatch.setattr("trainer.loop.distributed.world", lambda rank=rank: World(rank, 2))
        scan_tars(tars, Store(cache))
    assert scanned == [1, "waits", 0, 2, "waits"]
    prepare_pairs(tars, Store(cache))
    shutil.rmtree(next(cache.glob("pairs/*/tars")))  # what is prepared needs them no more
    scan_tars(tars, Store(cache))
    assert prepare_pairs(tars, Store(cache)).table.num_rows == 9
    assert scanned == [1, "waits", 0, 2, "waits", "waits"]


@pytest.mark.parametrize("size", [1 << 62, -1024])
def test_a_header_that_claims_an_impossible_size_ends_its_tar_and_is_counted(icons, tmp_path, size):
    folder = write_subset(tmp_path / "subset", icons[:4], n_tars=1)
    with tarfile.open(folder / "00000.tar", "a") as tar:
        for name, claimed in (("zz.txt", 0), ("zz.png", size)):
            info = tarfile.TarInfo(name)
            info.size = claimed
            tar.fileobj.seek(tar.offset)
            tar.fileobj.write(info.tobuf(tarfile.GNU_FORMAT))
            tar.offset += tarfile.BLOCKSIZE
    pairs = prepare_pairs(open_subset(str(folder)), Store(tmp_path / "cache"))
    assert len(pairs) == 4
    assert [read_picture(place) for place in pairs.locations(np.arange(4))] == [some["png"] for some in icons[:4]]
    (reason,) = pairs.rejects
    assert f"a member claims {size} bytes" in reason


def test_a_header_that_tarfile_trips_over_ends_its_tar_and_is_counted(icons, tmp_path):
    folder = write_subset(tmp_path / "subset", icons[:4], n_tars=1)
    with tarfile.open(folder / "00000.tar", "a", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("zz.png")
        info.pax_headers = {"GNU.sparse.size": "many"}
        tar.addfile(info)
    pairs = prepare_pairs(open_subset(str(folder)), Store(tmp_path / "cache"))
    assert len(pairs) == 3  # the fourth may go on past what cannot be read
    (reason,) = pairs.rejects
    assert "breaks off at byte" in reason
