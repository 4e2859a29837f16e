"""What a training pair finds: what a plain search of all rows gives, never itself or its like, each row checked."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from memory_builder.base.runner import LocalRunner, run_all
from memory_builder.base.types import MODALITIES
from memory_builder.embedding.config import EmbedConfig
from memory_builder.embedding.driver import import_embeddings
from memory_builder.errors import ConcurrentWriterError, UsageError
from memory_builder.indexing.config import IndexConfig
from memory_builder.indexing.driver import index as index_memory
from memory_builder.memory import Memory
from memory_builder.storage.store import Store
from trainer.loop.config import NO_GROUP
from trainer.loop.sampler import BatchIndices
from trainer.reco.clusters import read_clusters
from trainer.reco.config import LookupConfig, NeighbourConfig
from trainer.reco.learner import TableSource
from trainer.reco.lookup import SAME_PICTURE, look_up
from trainer.reco.neighbour_table import (
    NeighbourTable,
    NeighbourTask,
    ids_path,
    neighbours_hash,
    pairs_path,
    vectors_path,
)
from trainer.reco.training_pairs import find_neighbours

N, D, K = 600, 32, 10


@pytest.fixture(scope="module")
def memory(tmp_path_factory, write_memory, clustered):
    """600 pairs; 0 to 19 are there twice, 20 to 39 lack a picture, 40 to 59 a caption."""
    root = tmp_path_factory.mktemp("neighbours") / "memory"
    images, texts = clustered(N, D, 5, n_clusters=12)
    images[300:320] = images[:20]
    images[20:40], texts[40:60] = 0, 0
    sites = {"columns": {"site": "string"}, "fields": lambda row: {"site": "ab"[row % 2]}}
    write_memory(root, images, texts, shard_rows=250, **sites)
    index_memory(str(root), keys=("image", "text"), config=IndexConfig(), runner=LocalRunner())
    return Memory.open(root)


@pytest.fixture
def clusters(tmp_path):
    """Artwork 100 holds rows 100 to 139; nothing is known of the rest."""
    path = tmp_path / "clusters.parquet"
    table = {"key": [f"{row:08d}" for row in range(100, 140)], "cluster": [100] * 40}
    pq.write_table(pa.table(table), path)
    return str(path)


def find(memory, folder, config, clusters=None):
    """Every shard's neighbours → what was counted in each."""
    task = NeighbourTask(
        memory=memory.store.root,
        train=memory.store.root,
        folder=str(folder),
        config=config,
        state=neighbours_hash(memory, memory, config, clusters),
        clusters=clusters,
    )
    return [counts for _, counts in run_all(LocalRunner(), task, list(memory.commits))]


def stored(folder, memory, side):
    """(i64[m] rows, i64[m, k] ids, f16[m, k, d] vectors) of one side, all shards."""
    tables = [pq.read_table(Path(folder) / pairs_path(o)) for o in memory.commits]
    ids = np.concatenate([np.load(Path(folder) / ids_path(o)) for o in memory.commits])
    vectors = np.concatenate([np.load(Path(folder) / vectors_path(o)) for o in memory.commits])
    place = MODALITIES.index(side)
    rows = np.concatenate([np.array(table["row"]) for table in tables])
    return rows, ids[:, place], vectors[:, 2 + place * K : 2 + (place + 1) * K]


def everything(memory):
    """(ids, images f32[n, d], texts f32[n, d]) of all rows."""
    ids = np.concatenate([memory.row_ids(ordinal) for ordinal in memory.commits])
    return ids, memory.vectors(ids, "image"), memory.vectors(ids, "text")


@pytest.mark.parametrize("side", MODALITIES)
def test_every_row_finds_what_brute_force_finds_and_nothing_it_must_not(memory, clusters, tmp_path, side):
    counts = find(memory, tmp_path, NeighbourConfig(looked_up=K), clusters)
    ids, images, texts = everything(memory)
    rows, found, fused = stored(tmp_path, memory, side)
    np.testing.assert_array_equal(rows, np.delete(ids, range(20, 60)))
    asked, given = (images, texts) if side == "image" else (texts, images)
    alike, artwork = images @ images.T, np.where((np.arange(N) >= 100) & (np.arange(N) < 140), 100, -1)
    for place, row in enumerate(np.searchsorted(ids, rows)):
        same = (artwork[row] != -1) & (artwork == artwork[row])
        unknown = (artwork[row] == -1) | (artwork == -1)
        forbidden = same | (alike[row] >= SAME_PICTURE) | (unknown & (alike[row] >= 0.95)) | (ids == ids[row])
        there = asked.any(axis=1) & given.any(axis=1)
        scores = np.where(forbidden | ~there, -np.inf, asked @ asked[row])
        at = np.searchsorted(ids, found[place][found[place] != -1])
        assert np.isfinite(scores[at]).all()
        np.testing.assert_allclose(scores[at], np.sort(scores)[::-1][: len(at)], atol=1e-3)
        np.testing.assert_array_equal(fused[place][: len(at)], given[at].astype(np.float16))
        assert not fused[place][len(at) :].any()
        if row < 20:
            assert ids[row + 300] not in found[place]
    total = sum(counts[1:], start=counts[0])
    assert total["pairs"] == N - 40
    assert total[f"{side} self"] >= N - 60
    assert total[f"{side} same cluster"] > 0
    assert total[f"{side} short"] == (found[:, -1] == -1).sum()


def test_the_table_reads_any_pairs_in_any_order(memory, tmp_path):
    find(memory, tmp_path, NeighbourConfig(looked_up=K))
    table = NeighbourTable(Store(tmp_path), memory.commits)
    rows, _, of_images = stored(tmp_path, memory, "image")
    _, images, texts = everything(memory)
    places = np.random.default_rng(0).permutation(len(table))[:100]
    found = table.read(places)
    at = np.searchsorted(everything(memory)[0], rows[places])
    np.testing.assert_allclose(found[:, 0], images[at], atol=1e-3)
    np.testing.assert_allclose(found[:, 1], texts[at], atol=1e-3)
    np.testing.assert_array_equal(found[:, 2 : 2 + K], of_images[places])
    assert len(table) == N - 40
    assert len(set(table.captions.tolist())) == N - 40


def test_rows_of_the_pairs_own_site_are_dropped_where_asked(memory, tmp_path):
    counts = find(memory, tmp_path, NeighbourConfig(looked_up=K, spare=50, apart="site"))
    rows, found, _ = stored(tmp_path, memory, "image")
    place = np.searchsorted(everything(memory)[0], found)
    there = found != -1
    assert ((place % 2 != (np.searchsorted(everything(memory)[0], rows) % 2)[:, None]) | ~there).all()
    assert there.mean() > 0.9
    assert sum(some["image not apart"] for some in counts) > len(rows)
    with pytest.raises(UsageError, match="no column nothing"):
        find(memory, tmp_path / "other", NeighbourConfig(apart="nothing"))


def test_deleted_rows_are_neither_trained_on_nor_found(memory, tmp_path):
    root, ids = tmp_path / "memory", everything(memory)[0]
    shutil.copytree(memory.store.root, root)
    gone = np.concatenate([memory.row_ids(1), ids[100:150]])  # all of one shard, some of another
    left = Memory.open(root).delete(ids=gone)
    assert neighbours_hash(left, left, NeighbourConfig(), None) != neighbours_hash(
        left, Memory.open(memory.store.root), NeighbourConfig(), None
    )
    counts = find(left, tmp_path / "found", NeighbourConfig(looked_up=K))
    rows, found, _ = stored(tmp_path / "found", left, "image")
    np.testing.assert_array_equal(rows, np.setdiff1d(np.delete(ids, range(20, 60)), gone))
    assert not np.isin(found, gone).any()
    assert [some["pairs"] for some in counts] == [160, 0, 100]
    table = NeighbourTable(Store(tmp_path / "found"), left.commits)
    assert len(table.read(np.arange(len(table)))) == 260


class Meanwhile(LocalRunner):
    """Something happens after the work was planned and before a worker starts."""

    def __init__(self, happens):
        self.happens = happens

    def run(self, task, items):
        self.happens()
        return super().run(task, items)


@pytest.mark.parametrize("changed", ["memory", "train", "clusters"])
def test_what_changes_while_neighbours_are_looked_up_is_not_stored_as_it_was_before(
    memory, clusters, tmp_path, changed
):
    roots = {name: str(shutil.copytree(memory.store.root, tmp_path / name)) for name in ("memory", "train")}

    def change():
        if changed == "clusters":
            pq.write_table(pa.table({"key": ["00000100"], "cluster": [1]}), clusters)
        else:
            Memory.open(roots[changed]).delete(ids=memory.row_ids(0)[:3])

    def found_by(runner):
        config = NeighbourConfig(looked_up=K)
        return find_neighbours(roots["memory"], roots["train"], str(tmp_path / "found"), config, clusters, runner)

    with pytest.raises(ConcurrentWriterError, match="changed during the search for neighbours; run the command"):
        found_by(Meanwhile(change))
    assert not list((tmp_path / "found").rglob("records/*.json"))
    assert found_by(LocalRunner()).counts["pairs"] == N - 40 - 3 * (changed == "train")


def test_without_exclusion_a_pair_finds_itself(memory, tmp_path):
    find(memory, tmp_path, NeighbourConfig(looked_up=K, exclude=False))
    rows, found, _ = stored(tmp_path, memory, "image")
    assert (found == rows[:, None]).any(axis=1).mean() > 0.99


def test_other_modalities_can_be_searched_and_fused(memory, tmp_path):
    lookup = LookupConfig(image_search="text", image_fuse="image", text_search="image", text_fuse="text")
    find(memory, tmp_path, NeighbourConfig(lookup=lookup, looked_up=K, exclude=False))
    ids, images, texts = everything(memory)
    rows, found, fused = stored(tmp_path, memory, "image")
    row = 400
    place = np.searchsorted(rows, ids[row])
    scores = np.where(images.any(axis=1) & texts.any(axis=1), texts @ images[row], -np.inf)
    at = np.searchsorted(ids, found[place])
    np.testing.assert_allclose(scores[at], np.sort(scores)[::-1][:K], atol=1e-3)
    np.testing.assert_array_equal(fused[place], images[at].astype(np.float16))


def test_a_query_gets_the_nearest_rows_that_have_what_is_fused(memory):
    ids, images, texts = everything(memory)
    asked = np.flatnonzero(images.any(axis=1))
    found = look_up(memory, images[asked], "image", LookupConfig(), K)
    scores = images[asked] @ images.T
    scores[:, ~(images.any(axis=1) & texts.any(axis=1))] = -1  # 20 rows that are found have no caption to fuse
    nearest = np.sort(scores, axis=1)[:, : -K - 1 : -1]
    given = np.take_along_axis(scores, np.searchsorted(ids, found.ids), 1)
    np.testing.assert_allclose(given, nearest, atol=1e-5)
    np.testing.assert_array_equal(found.vectors, texts[np.searchsorted(ids, found.ids)].astype(np.float16))
    assert found.vectors.dtype == np.float16
    few = look_up(memory, texts[:3], "text", LookupConfig(), 2 * N)
    assert (few.ids[:, -1] == -1).all()
    assert not few.vectors[:, -1].any()


def test_a_killed_look_up_goes_on_and_the_bytes_are_the_same(memory, tmp_path):
    config = NeighbourConfig(looked_up=K)
    counts = find(memory, tmp_path / "whole", config)
    find(memory, tmp_path / "again", config)
    (tmp_path / "again/records/00001.json").unlink()
    (tmp_path / "again/vectors/00001.npy").write_bytes(b"cut")
    (tmp_path / "again/ids/00000.npy").write_bytes(b"also cut")  # its record stands, its size does not
    before = (tmp_path / "again/ids/00002.npy").stat().st_mtime_ns
    assert find(memory, tmp_path / "again", config) == counts
    assert (tmp_path / "again/ids/00002.npy").stat().st_mtime_ns == before
    names = [path(o) for o in memory.commits for path in (vectors_path, ids_path, pairs_path)]
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert json.loads((tmp_path / "again/records/00000.json").read_text())["counts"] == dict(counts[0])


def test_rows_without_a_caption_have_equal_captions_with_none(tmp_path, clustered):
    vectors = dict(zip(("img_emb", "text_emb"), clustered(40, D, 6), strict=True))
    for name, array in vectors.items():
        (tmp_path / "laion" / name).mkdir(parents=True)
        np.save(tmp_path / "laion" / name / f"{name}_0.npy", array.astype(np.float16))
    (tmp_path / "laion" / "metadata").mkdir()
    captions = [None, None, "", "", "a cat", "a cat", *(f"thing {row}" for row in range(34))]
    pq.write_table(pa.table({"caption": captions}), tmp_path / "laion" / "metadata" / "metadata_0.parquet")
    root = str(tmp_path / "memory")
    import_embeddings(str(tmp_path / "laion"), root, encoder=None, config=EmbedConfig(), runner=LocalRunner())
    index_memory(root, keys=("image", "text"), config=IndexConfig(), runner=LocalRunner())
    found = find_neighbours(root, root, str(tmp_path / "found"), NeighbourConfig(looked_up=K), None, LocalRunner())
    table = NeighbourTable(Store(found.folder), found.ordinals)
    assert len(table) == 40
    (batch,) = TableSource(table=table, positives="caption").batches([BatchIndices(0, np.arange(6))])
    assert batch["group"][:4].tolist() == [NO_GROUP] * 4
    assert batch["group"][4] == batch["group"][5] != NO_GROUP


def test_the_hash_follows_what_neighbours_depend_on(memory, clusters):
    def hashed(clusters=None, **changes):
        return neighbours_hash(memory, memory, NeighbourConfig(**changes), clusters)

    assert hashed() == hashed()
    assert len({hashed(), hashed(looked_up=5), hashed(exclude=False), hashed(clusters=clusters)}) == 4


def test_clusters_are_read_and_refused(tmp_path, clusters):
    known = read_clusters(clusters)
    assert known.of(pa.array(["00000100", "00000001", "00000139"])).tolist() == [0, -1, 0]
    assert read_clusters(None).of(pa.array(["x"])).tolist() == [-1]
    pq.write_table(pa.table({"key": ["a", "a"], "cluster": [1, 2]}), tmp_path / "twice.parquet")
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "half.parquet")
    for name in ("twice.parquet", "half.parquet", "missing.parquet"):
        with pytest.raises(UsageError, match=name):
            read_clusters(str(tmp_path / name))


@pytest.mark.parametrize(
    ("config", "named"), [({"looked_up": 0}, "--looked-up 0"), ({"near_duplicate": 0}, "--near-duplicate 0")]
)
def test_settings_that_cannot_be_are_refused(config, named):
    with pytest.raises(UsageError, match=named):
        NeighbourConfig(**config)
