"""The whole of retrieve on real icons: what is in the subset, what is left out, and that both are told."""

import json
import random
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import memory_builder as mb
from memory_builder import Memory
from memory_builder.base.runner import LocalRunner
from memory_builder.embedding.config import EmbedConfig
from memory_builder.errors import ConfigMismatchError, CorruptMemoryError, IndexBuildError, RetrieveError, UsageError
from memory_builder.indexing.config import IndexConfig
from memory_builder.model.encoder import EncoderConfig
from memory_builder.readers.read import Pair, read_pairs
from memory_builder.retrieval.classes import Class
from memory_builder.retrieval.config import QueryConfig, RetrieveConfig
from memory_builder.retrieval.driver import Request, write_subset
from memory_builder.retrieval.selection import SelectConfig
from memory_builder.retrieval.summary import Summary
from memory_builder.retrieval.write import pair_key
from memory_builder.storage.store import sha256

CLASSES = tuple(Class(label=i, name=name) for i, name in enumerate(["cat", "airplane", "AC/DC", "cat", "umbrella"]))
Ask = Callable[..., tuple[Path, Summary]]


@pytest.fixture
def ask(icon_memory: Path, tmp_path: Path) -> Ask:
    """Retrieve from the icons; by name, settings of the request, of what is looked for and of what is chosen."""

    def run(memory: Path = icon_memory, out: Path = tmp_path / "subset", **given: Any) -> tuple[Path, Summary]:
        fields = {"memory": str(memory), "out": str(out), "classes": CLASSES, "templates": ("{c} icon", "a {c}")}
        config = RetrieveConfig(
            ask=QueryConfig(**{"per_query": 20, "block_queries": 3} | given.pop("looking", {})),
            select=SelectConfig(**given.pop("choosing", {})),
            shard_pairs=given.pop("shard_pairs", 40),
            dedup=given.pop("dedup", None),
        )
        runner = given.pop("runner", LocalRunner())
        return out, write_subset(Request(**fields | {"config": config} | given), runner)

    return run


def pairs_in(subset: Path) -> list[Pair]:
    """As every reader of ours finds them."""
    found = [pair for tar in sorted(subset.glob("*.tar")) for pair in read_pairs(str(tar))]
    assert all(isinstance(pair, Pair) for pair in found)
    return [pair for pair in found if isinstance(pair, Pair)]


def test_the_record_names_the_model_with_its_weights_for_who_trains_it(
    ask: Ask, icon_memory: Path, model_dir: Path, tmp_path: Path
) -> None:
    memory = tmp_path / "memory"
    shutil.copytree(icon_memory, memory)
    described = json.loads((memory / "memory.json").read_text())
    (memory / "memory.json").write_text(json.dumps(described | {"model": "ViT-B-32", "pretrained": "openai"}))
    out, _ = ask(memory, encoder=EncoderConfig(model=f"local-dir:{model_dir}"), looking={"per_query": 2})
    record = json.loads((out / "retrieve.json").read_text())
    assert (record["model"], record["pretrained"]) == ("ViT-B-32", "openai")
    ask(icon_memory, out, looking={"per_query": 2})  # the same memory elsewhere: what it chose stands


def test_every_pair_is_what_the_memory_holds_and_every_claim_a_hit(ask: Ask, icon_memory: Path) -> None:
    out, summary = ask(looking={"mode": ("both",)})
    memory = Memory.open(icon_memory)
    hits = pq.read_table(out / "hits.parquet").to_pylist()
    assert len(hits) == summary.chosen.n_hits == 2 * 10 * 20  # no -1 among them
    best: dict[tuple[int, int], dict[str, float]] = defaultdict(dict)
    for hit in hits:
        of_row = best[hit["label"], hit["id"]]
        of_row[hit["mode"]] = max(of_row.get(hit["mode"], -1), hit["score"])
        assert CLASSES[hit["label"]].name == hit["class"]
    pairs = pairs_in(out)
    assert len(pairs) == len({pair.key for pair in pairs}) == summary.pairs
    assert {pair.fields["row_id"] for pair in pairs} == {row for _, row in best}
    about = memory.metadata([pair.fields["row_id"] for pair in pairs]).to_pylist()
    for pair, row in zip(pairs, about, strict=True):
        assert (pair.caption, pair.fields["source_key"]) == (row["caption"], row["key"])
        assert sha256(pair.image or b"") == row["sha256"]
        assert pair.key == pair_key(pair.fields["row_id"])
        for claim in pair.fields["claims"]:
            of_row = best[claim["label"], pair.fields["row_id"]]
            assert of_row[claim["mode"]] == pytest.approx(claim["score"], abs=1e-5)
    claimed = {(claim["label"], pair.fields["row_id"]) for pair in pairs for claim in pair.fields["claims"]}
    assert claimed == set(best)
    assert summary.counts == [sum(label == c.label for label, _ in claimed) for c in CLASSES]
    assert summary.counts[0] == summary.counts[3] > 0  # the same name twice: two classes, the same pairs


def test_all_kinds_of_sources_are_read_and_none_is_split(ask: Ask, icon_memory: Path) -> None:
    out, summary = ask(looking={"per_query": 300}, shard_pairs=100)
    assert summary.pairs == 300
    assert summary.tars == len(list(out.glob("*.tar"))) == 5  # two shards of 60 are more than 100
    ordinals = [{pair.fields["row_id"] >> 32 for pair in read_pairs(str(tar))} for tar in sorted(out.glob("*.tar"))]
    assert sorted(ordinal for some in ordinals for ordinal in some) == sorted(Memory.open(icon_memory).commits)


def test_pictures_are_read_again_from_the_column_they_were_embedded_from(
    ask: Ask, icon_sources: Path, model_dir: Path, tmp_path: Path
) -> None:
    table = pq.read_table(icon_sources / "3.parquet").rename_columns({"image": "bild"})
    pq.write_table(table.append_column("image", [["thumbnail"] * len(table)]), tmp_path / "odd.parquet")
    mb.embed(
        [str(tmp_path / "odd.parquet")],
        str(tmp_path / "memory"),
        encoder=EncoderConfig(model=f"local-dir:{model_dir}"),
        config=EmbedConfig(image_key="bild"),
        runner=LocalRunner(),
    )
    mb.index(str(tmp_path / "memory"), keys=["image"], config=IndexConfig(), runner=LocalRunner())
    out, summary = ask(memory=tmp_path / "memory")
    assert summary.pairs > 0
    assert summary.missing == 0
    assert {pair.image for pair in pairs_in(out)} <= set(table["bild"].to_pylist())


def test_what_a_pairs_json_says_is_written_whatever_it_is(ask: Ask, model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (30, 30), "teal").save(tmp_path / "pictures" / "0.png")
    (tmp_path / "pictures" / "0.json").write_text(r'{"caption": "a cat", "title": "caf\u00e9 \ud83d"}')
    encoder, runner, memory = EncoderConfig(model=f"local-dir:{model_dir}"), LocalRunner(), tmp_path / "memory"
    mb.embed([str(tmp_path / "pictures")], str(memory), encoder=encoder, config=EmbedConfig(), runner=runner)
    mb.index(str(memory), keys=["image"], config=IndexConfig(), runner=runner)
    out, _ = ask(memory=memory)
    assert [pair.fields["title"] for pair in pairs_in(out)] == ["café ?"]


def test_of_an_imported_memory_what_makes_no_pair_is_left_out(ask: Ask, model_dir: Path, tmp_path: Path) -> None:
    image = Image.new("RGB", (30, 30), "teal")
    image.save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=[image])
    image.save(tmp_path / "good.png")
    Image.new("1", (20_000, 10_000)).save(tmp_path / "bomb.png")
    files = ["phone.jpg", "good.png", "bomb.png"]
    vectors = np.eye(len(files), 192, dtype=np.float16)
    for name in ("img_emb", "text_emb"):
        (tmp_path / "laion" / name).mkdir(parents=True)
        np.save(tmp_path / "laion" / name / f"{name}_0.npy", vectors)
    (tmp_path / "laion" / "metadata").mkdir()
    about = {"url": [f"file://{tmp_path}/{file}" for file in files], "caption": ["a cat", None, "a cat"]}
    pq.write_table(pa.table(about), tmp_path / "laion" / "metadata" / "metadata_0.parquet")
    encoder, runner, memory = EncoderConfig(model=f"local-dir:{model_dir}"), LocalRunner(), tmp_path / "memory"
    mb.import_embeddings(str(tmp_path / "laion"), str(memory), encoder=encoder, config=EmbedConfig(), runner=runner)
    mb.index(str(memory), keys=["image"], config=IndexConfig(), runner=runner)
    with pytest.raises(RetrieveError, match="2 link leads out of its source's folder"):
        ask(memory=memory, max_missing=0.9, out=tmp_path / "strangers")
    out, summary = ask(memory=memory, max_missing=0.9, local_roots=(str(tmp_path),))
    assert summary.chosen.n_incomplete == 1
    assert summary.missing_by_reason == {"no picture any more": 1}
    assert [(pair.member, pair.caption) for pair in pairs_in(out)] == [("00000-000000.jpg", "a cat")]


def test_templates_can_be_averaged_and_blocks_do_not_matter(ask: Ask, tmp_path: Path) -> None:
    one, _ = ask(looking={"average": True, "block_queries": 2})
    other, summary = ask(out=tmp_path / "other", looking={"average": True, "block_queries": 100})
    assert summary.queries == len(CLASSES)
    hits, others = pq.read_table(one / "hits.parquet"), pq.read_table(other / "hits.parquet")
    assert hits.drop_columns("score").equals(others.drop_columns("score"))
    # A block's names are embedded together, and the number of them may move the last bit.
    np.testing.assert_allclose(hits["score"].to_numpy(), others["score"].to_numpy(), atol=1e-6)
    assert [pair.key for pair in pairs_in(one)] == [pair.key for pair in pairs_in(other)]


def test_caps_scores_and_filters(ask: Ask, tmp_path: Path) -> None:
    _, natural = ask()
    _, capped = ask(out=tmp_path / "capped", choosing={"max_per_class": 3, "overlap": "best"})
    assert max(capped.counts) == 3
    assert sum(capped.counts) == capped.pairs
    _, few = ask(out=tmp_path / "few", choosing={"total": 7})
    assert few.pairs == 7 < natural.pairs
    out, scored = ask(out=tmp_path / "scored", looking={"min_score": ("0.55",)})
    scores = pq.read_table(out / "hits.parquet")["score"].to_numpy()
    assert scored.chosen.n_below == (scores < np.float32(0.55)).sum() > 0
    assert all(claim["score"] >= 0.55 for pair in pairs_in(out) for claim in pair.fields["claims"])
    out, filtered = ask(out=tmp_path / "filtered", looking={"where": "caption LIKE '%cat%'"})
    assert {"cat" in (pair.caption or "") for pair in pairs_in(out)} == {True}
    assert filtered.short_queries == filtered.queries == 10


def test_a_class_without_a_pair_is_named_and_has_no_centroid(ask: Ask) -> None:
    out, summary = ask(choosing={"total": 2, "overlap": "best"}, looking={"mode": ("t2t",)})
    assert summary.empty_classes == [
        {"label": label, "class": CLASSES[label].name} for label, n in enumerate(summary.counts) if not n
    ]
    assert 0 < len(summary.empty_classes) < len(CLASSES)
    centroids = np.load(out / "centroids.npy")
    lengths = np.linalg.norm(centroids, axis=1)
    assert lengths == pytest.approx([float(n > 0) for n in summary.counts], abs=1e-5)
    support = pq.read_table(out / "support.parquet")
    assert len(np.load(out / "support.npy")) == support.num_rows == sum(summary.counts)


def test_nothing_reaches_the_score(ask: Ask) -> None:
    out, summary = ask(looking={"min_score": ("0.999",)})
    assert (summary.pairs, summary.tars, len(summary.empty_classes)) == (0, 0, len(CLASSES))
    assert "0 pairs for 5 classes" in (out / "subset.html").read_text()


def test_example_pictures_ask_and_find_themselves(ask: Ask, icon_sources: Path) -> None:
    pictures = sorted((icon_sources / "pictures").iterdir())[:2]
    classes = (Class(label=0, name="some", images=tuple(map(str, pictures))), Class(label=1, name="none"))
    out, summary = ask(classes=classes, looking={"mode": ("i2i", "i2t"), "per_query": 3})
    assert (summary.queries, [c["label"] for c in summary.empty_classes]) == (4, [1])
    first = [
        hit for hit in pq.read_table(out / "hits.parquet").to_pylist() if hit["rank"] == 0 and hit["mode"] == "i2i"
    ]
    assert [hit["key"] for hit in first] == [path.stem for path in pictures]
    assert all(hit["score"] > 0.999 for hit in first)
    with pytest.raises(UsageError, match="--mode i2i needs example pictures, and no class has any"):
        ask(looking={"mode": ("i2i",)}, out=out.parent / "no-pictures")


def test_deleted_rows_and_k_beyond_the_memory(ask: Ask, icon_memory: Path, tmp_path: Path) -> None:
    memory = Path(shutil.copytree(icon_memory, tmp_path / "memory"))
    Memory.open(memory).delete(where="caption LIKE '%cat%'")
    left = len(Memory.open(memory))
    assert 0 < left < 300
    out, summary = ask(memory=memory, looking={"per_query": 10_000})
    assert (summary.pairs, summary.chosen.n_hits, summary.short_queries) == (left, 10 * left, 10)
    assert not any("cat" in (pair.caption or "") for pair in pairs_in(out))


def test_rows_that_are_deleted_meanwhile_are_of_another_state(ask: Ask, icon_memory: Path, tmp_path: Path) -> None:
    memory = Path(shutil.copytree(icon_memory, tmp_path / "memory"))
    _, expected = ask(memory=memory, out=tmp_path / "undisturbed")

    class Meanwhile(LocalRunner):
        """Another writer deletes every row."""

        def run(self, task: Any, items: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
            Memory.open(memory).delete(where="has_image")
            yield from super().run(task, items)

    assert ask(memory=memory, runner=Meanwhile())[1] == expected


def test_the_same_picture_twice_and_near_duplicates(ask: Ask, icon_memory: Path, tmp_path: Path) -> None:
    _, plain = ask(looking={"per_query": 300})
    out, summary = ask(out=tmp_path / "fewer", looking={"per_query": 300}, dedup=0.9)
    assert summary.pairs == plain.pairs - summary.chosen.n_near_duplicates < plain.pairs
    ids = np.array([pair.fields["row_id"] for pair in pairs_in(out)])
    vectors = Memory.open(icon_memory).vectors(ids)
    assert (np.triu(vectors @ vectors.T, 1) < 0.9).all()


def test_what_is_missing_is_counted_and_decides(
    ask: Ask, icon_sources: Path, icon_memory: Path, tmp_path: Path
) -> None:
    _, whole = ask(looking={"per_query": 300}, out=tmp_path / "whole")
    assert whole.missing == 0
    gone = [icon_sources / "pictures" / f"{key}.png" for key in sorted_keys(icon_memory, 4)[:5]]
    kept = {path: path.read_bytes() for path in [*gone, icon_sources / "0.tar", icon_sources / "3.parquet"]}
    try:
        gone[0].unlink()
        gone[1].write_bytes(b"another picture")
        (icon_sources / "0.tar").rename(icon_sources / "away.tar")
        with pytest.raises(RetrieveError, match=r"62 of 300 chosen pictures are missing .*--max-missing 0.21"):
            ask(looking={"per_query": 300}, max_missing=0.2)
        out, summary = ask(looking={"per_query": 300}, max_missing=0.21)
        assert summary.missing_by_reason == {"changed since it was embedded": 1, "no such file": 1, "shard is gone": 60}
        assert summary.pairs == len(pairs_in(out)) == 238
        left = [pq.read_table(path) for path in sorted((out / "left_out").iterdir())]
        assert sum(table.num_rows for table in left) == 62
    finally:
        (icon_sources / "away.tar").rename(icon_sources / "0.tar")
        for path, data in kept.items():
            path.write_bytes(data)


def sorted_keys(memory: Path, ordinal: int) -> list[str]:
    opened = Memory.open(memory)
    keys: list[str] = opened.rows(opened.row_ids(ordinal))["key"].to_pylist()
    return keys


def test_what_was_asked_for_otherwise_is_refused_and_the_same_again_does_nothing(
    ask: Ask, icon_memory: Path, tmp_path: Path
) -> None:
    out, summary = ask()
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.rglob("*.tar")}
    assert ask()[1] == summary
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.rglob("*.tar")} == before
    with pytest.raises(ConfigMismatchError, match=r"templates .* before, .* now"):
        ask(templates=("{c}",))
    memory = Path(shutil.copytree(icon_memory, tmp_path / "memory"))
    assert ask(memory=memory)[1] == replace(summary, memory=str(memory))  # the same state elsewhere
    Memory.open(memory).delete(keys=[sorted_keys(memory, 0)[0]])
    with pytest.raises(ConfigMismatchError, match="snapshot"):
        ask(memory=memory)


def test_an_index_that_is_not_there_is_told_before_anything_is_written(
    ask: Ask, write_memory: Callable[..., Any], clustered: Callable[..., Any], tmp_path: Path
) -> None:
    images, texts = clustered(20, 8, 0)
    write_memory(tmp_path / "bare", images, texts)
    with pytest.raises(IndexBuildError, match="has no index of image vectors"):
        ask(memory=tmp_path / "bare")
    assert not (tmp_path / "subset").exists()


DAMAGED_SUBSET = {
    "tar missing": ("00001.tar", None),
    "tar empty": ("00001.tar", 0),
    "tar cut": ("00001.tar", 0.5),
    "tar's record": ("commits/00001.json", 0.5),
    "tar's record of other types": ("commits/00001.json", b'{"number": "1", "n_pairs": []}'),
    "tar's record of another": ("commits/00001.json", b'{"number": 7}'),
    "left out": ("left_out/00001.parquet", 0.5),
    "strips": ("strips/00000.parquet", None),
    "selection": ("selection.parquet", 0.5),
    "selection's record": ("selection.json", b'{"pieces": [-1]}'),
    "summary": ("subset.json", 0),
    "centroids": ("centroids.npy", 0.5),
    "support": ("support.parquet", None),
}
DAMAGED_HITS = {
    "hits cut": ("search/00001.parquet", 0.9),
    "hits missing": ("search/00001.parquet", None),
    "hits of another kind": ("search/00001.parquet", b"PAR1 and so on PAR1"),
    "hits' record": ("search/00001.json", 0),
    "hits' record of nonsense": ("search/00001.json", b'[[[["../../x"]]]]'),
}


def damage(path: Path, how: Any) -> None:
    if how is None:
        path.unlink()
    else:
        data = path.read_bytes()
        path.write_bytes(how if isinstance(how, bytes) else data[: int(len(data) * how)])


@pytest.mark.parametrize("kind", [*DAMAGED_SUBSET, *DAMAGED_HITS])
def test_what_is_lost_or_damaged_of_a_subset_is_made_again_by_the_same_call(ask: Ask, kind: str) -> None:
    out, summary = ask()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.suffix in (".tar", ".parquet", ".npy")}
    path, how = (DAMAGED_SUBSET | DAMAGED_HITS)[kind]
    damage(out / path, how)
    if kind in DAMAGED_HITS:
        (out / "selection.json").unlink()  # else nothing reads them any more
    assert ask()[1] == summary
    assert {path: path.read_bytes() for path in before} == before


def test_a_damaged_request_is_told_with_what_helps(ask: Ask) -> None:
    out, _ = ask()
    (out / "retrieve.json").write_text("{")
    with pytest.raises(
        CorruptMemoryError, match=r"retrieve\.json is damaged .* remove it and run the same command again"
    ):
        ask()


class Crowd:
    """Workers of their own, in threads, which finish in any order."""

    def __init__(self, n_workers: int) -> None:
        self.n_workers = n_workers

    def run(self, task: Any, items: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        shuffled = random.Random(self.n_workers).sample(list(items), len(items))
        workers = [task.start() for _ in range(self.n_workers)]
        with ThreadPoolExecutor(self.n_workers) as threads:
            done = [(item, threads.submit(workers[i % self.n_workers], item)) for i, item in enumerate(shuffled)]
            yield from ((item, future.result()) for item, future in reversed(done))


@pytest.mark.parametrize("n_workers", [2, 4])
def test_any_number_of_workers_writes_the_same_bytes(ask: Ask, tmp_path: Path, n_workers: int) -> None:
    given = {"looking": {"mode": ("both",), "block_queries": 1}, "dedup": 0.95}
    one, summary = ask(**given, out=tmp_path / "one")
    crowd, other = ask(**given, out=tmp_path / "crowd", runner=Crowd(n_workers))
    assert other == summary
    names = [path.relative_to(one) for path in one.rglob("*") if path.is_file() and path.suffix != ".json"]
    assert len(names) > 20
    for name in names:
        assert (crowd / name).read_bytes() == (one / name).read_bytes(), name


def test_summary_and_page_tell_the_same(ask: Ask) -> None:
    out, summary = ask(looking={"mode": ("both",)})
    told = json.loads((out / "subset.json").read_text())
    assert (told["pairs"], told["class_names"][2], told["config"]["ask"]["per_query"]) == (summary.pairs, "AC/DC", 20)
    page = (out / "subset.html").read_text()
    assert f"{summary.pairs:,} pairs for 5 classes" in page
    assert all(part in page for fact in summary.facts() for part in fact)
    assert ("near duplicates", "−0", "off (--dedup)") in summary.facts()
    assert page.count("<section") == 5
    assert page.count("<svg") == 3
    assert 'src="http' not in page
    assert page.count("<img") >= sum(min(n, 8) for n in summary.counts) - 8
