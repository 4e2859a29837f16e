"""Vectors come in from every layout that others write, and out again as they were."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.tars import good_pairs, picture, published_index, tar_bytes
from memory_builder.base.runner import LocalRunner
from memory_builder.embedding.config import EmbedConfig
from memory_builder.embedding.driver import EmbedReport, embed, import_embeddings
from memory_builder.errors import IndexBuildError, SourceError, UsageError
from memory_builder.export.tables import export_table
from memory_builder.indexing.config import IndexConfig
from memory_builder.indexing.driver import adopt, index
from memory_builder.memory import Memory
from memory_builder.model.encoder import EncoderConfig
from memory_builder.readers.published import find_published

D = 16


def unit(n: int, seed: int = 0, d: int = D) -> Any:
    vectors = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def bring(root: Path, memory: Path, keys: Any = "image", **config: Any) -> EmbedReport:
    return import_embeddings(
        str(root), str(memory), encoder=None, config=EmbedConfig(**config), runner=LocalRunner(), keys=keys
    )


def every(memory: Memory) -> np.ndarray:
    return np.concatenate([memory.row_ids(ordinal) for ordinal in memory.commits])


def folders(root: Path, sizes: dict[str, int], metadata: str = "metadata", **columns: Any) -> dict[str, Any]:
    """img_emb, text_emb and a metadata folder; vectors by side and name."""
    made = {}
    for i, (name, n) in enumerate(sizes.items()):
        for side, folder in (("image", "img_emb"), ("text", "text_emb")):
            (root / folder).mkdir(parents=True, exist_ok=True)
            made[side, name] = unit(n, 10 * i + (side == "text"))
            np.save(root / folder / f"{folder}_{name}.npy", made[side, name].astype(np.float16))
        (root / metadata).mkdir(exist_ok=True)
        table = {column: [f"{value} {name} {row}" for row in range(n)] for column, value in columns.items()}
        pq.write_table(pa.table(table), root / metadata / f"metadata_{name}.parquet")
    return made


@pytest.mark.parametrize("metadata", ["metadata", "laion2B-en-metadata"])
@pytest.mark.parametrize(("caption", "url"), [("caption", "url"), ("TEXT", "URL"), ("alt", "image_url")])
def test_metadata_is_known_under_other_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], metadata: str, caption: str, url: str
) -> None:
    """Rows came in without captions and URLs, and nothing said so."""
    folders(tmp_path / "in", {"0": 3}, metadata, **{caption: "a", url: "http://x"})
    bring(tmp_path / "in", tmp_path / "m")
    (first, *_) = Memory.open(tmp_path / "m").rows([0, 1, 2]).to_pylist()
    assert (first["caption"], first["url"]) == ("a 0 0", "http://x 0 0")
    assert "without" not in capsys.readouterr().err


def test_what_rows_will_lack_is_said_before_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders(tmp_path / "a", {"0": 3}, "info", caption="x")  # a folder that is not called after metadata
    bring(tmp_path / "a", tmp_path / "ma")
    assert "no metadata beside the vectors" in capsys.readouterr().err.split("import: 0/1")[0]
    folders(tmp_path / "b", {"0": 3}, description="x", address="y")
    bring(tmp_path / "b", tmp_path / "mb")
    said = capsys.readouterr().err.split("import: 0/1")[0]
    assert "rows without captions (expected a column caption, or --caption-key NAME) and URLs" in said
    bring(tmp_path / "b", tmp_path / "mc", caption_key="description", url_key="address")
    assert "without" not in capsys.readouterr().err
    assert Memory.open(tmp_path / "mc").rows([2])["url"].to_pylist() == ["y 0 2"]
    with pytest.raises(SourceError, match=r"no 'nope': give another --caption-key"):
        bring(tmp_path / "b", tmp_path / "md", caption_key="nope")


def test_numbers_may_be_padded_in_one_folder_and_not_in_another(tmp_path: Path) -> None:
    folders(tmp_path / "in", {"0": 3, "1": 2}, caption="c")
    for number in (0, 1):
        (tmp_path / "in" / "metadata" / f"metadata_{number}.parquet").rename(
            tmp_path / "in" / "metadata" / f"metadata_{number:04d}.parquet"
        )
    bring(tmp_path / "in", tmp_path / "m")
    assert Memory.open(tmp_path / "m").rows([1 << 32])["caption"].to_pylist() == ["c 1 0"]


def test_files_may_be_called_after_their_number_alone(tmp_path: Path) -> None:
    made = folders(tmp_path / "in", {"0": 3, "1": 2}, caption="c")
    for folder, suffix in (("img_emb", ".npy"), ("text_emb", ".npy"), ("metadata", ".parquet")):
        for number in (0, 1):
            (tmp_path / "in" / folder / f"{folder}_{number}{suffix}").rename(
                tmp_path / "in" / folder / f"{number}{suffix}"
            )
    bring(tmp_path / "in", tmp_path / "m")
    memory = Memory.open(tmp_path / "m")
    assert memory.rows([1 << 32])["caption"].to_pylist() == ["c 1 0"]
    np.testing.assert_allclose(memory.vectors([1 << 32]), made["image", "1"][:1], atol=1e-3)


@pytest.mark.parametrize("keys", ["image", "text"])
def test_arrays_side_by_side_are_read(tmp_path: Path, keys: Any) -> None:
    """autofaiss takes a folder of them."""
    (tmp_path / "in").mkdir()
    for i in range(3):
        np.save(tmp_path / "in" / f"{i}.npy", unit(4, i))
    (tmp_path / "in" / "._0.npy").write_bytes(b"x")
    bring(tmp_path / "in", tmp_path / "m", keys)
    memory = Memory.open(tmp_path / "m")
    np.testing.assert_allclose(
        memory.vectors(every(memory), keys), np.concatenate([unit(4, i) for i in range(3)]), atol=1e-3
    )
    assert not memory.vectors(every(memory), "text" if keys == "image" else "image").any()
    assert memory.rows([(2 << 32) + 3])["key"].to_pylist() == ["2/000000003"]
    assert bring(tmp_path / "in", tmp_path / "m", keys).n_embedded == 0


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.float16(), D), pa.large_list(pa.float64())])
def test_tables_with_a_column_of_vectors_are_read(tmp_path: Path, kind: pa.DataType) -> None:
    vectors = unit(5)
    table = {
        "id": [10, 11, 12, 13, 14],
        "embedding": pa.array(vectors.tolist()).cast(kind),
        "text": [f"t{i}" for i in range(5)],
    }
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table(table), tmp_path / "in" / "part-0.parquet")
    bring(tmp_path / "in", tmp_path / "m", columns=("id:int",))
    memory = Memory.open(tmp_path / "m")
    np.testing.assert_allclose(memory.vectors(every(memory)), vectors, atol=1e-3)
    assert memory.rows(every(memory))["caption"].to_pylist() == [f"t{i}" for i in range(5)]
    assert memory.metadata(every(memory), ["id"])["id"].to_pylist() == table["id"]


def test_tables_whose_vectors_cannot_be_told_apart_or_differ_in_width_are_refused(tmp_path: Path) -> None:
    two = {"a": [[1.0, 2.0]], "b": [[1.0, 2.0]]}
    pq.write_table(pa.table(two), tmp_path / "two.parquet")
    with pytest.raises(SourceError, match="2 columns of vectors: a, b"):
        bring(tmp_path / "two.parquet", tmp_path / "m")
    pq.write_table(pa.table({"v": [[1.0], [1.0, 2.0]]}), tmp_path / "ragged.parquet")
    with pytest.raises(SourceError, match=r"several widths \(1, 2\)"):
        bring(tmp_path / "ragged.parquet", tmp_path / "m")


def test_files_without_vectors_and_names_that_differ_by_zeros_alone(tmp_path: Path) -> None:
    for name, vectors in (("a", [None, None]), ("b", [[1.0, 0.0], None])):
        (tmp_path / "in").mkdir(exist_ok=True)
        pq.write_table(pa.table({"v": pa.array(vectors, pa.list_(pa.float32()))}), tmp_path / "in" / f"{name}.parquet")
    assert bring(tmp_path / "in", tmp_path / "m").n_rows == 4
    with pytest.raises(SourceError, match="the files hold no vectors"):
        bring(tmp_path / "in" / "a.parquet", tmp_path / "none")
    assert not (tmp_path / "none" / "memory.json").exists()
    folders(tmp_path / "zeros", {"0": 2, "00": 3}, caption="c")
    bring(tmp_path / "zeros", tmp_path / "mz")
    assert Memory.open(tmp_path / "mz").rows([1, (1 << 32) + 2])["caption"].to_pylist() == ["c 0 1", "c 00 2"]


def test_what_is_not_read_of_a_folder_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders(tmp_path / "in", {"0": 3}, "Metadata", caption="c")
    (tmp_path / "in" / "image.index").write_bytes(b"x")
    (tmp_path / "in" / "img_emb" / "img_emb_1.npz").write_bytes(b"x")
    bring(tmp_path / "in", tmp_path / "m")
    assert f"passed over in {tmp_path / 'in'}: image.index, img_emb/img_emb_1.npz\n" in capsys.readouterr().err
    assert Memory.open(tmp_path / "m").rows([0])["caption"].to_pylist() == ["c 0 0"]
    folders(tmp_path / "in", {"0": 3}, "b-metadata", caption="c")
    with pytest.raises(SourceError, match=r"several folders of metadata .Metadata, b-metadata."):
        bring(tmp_path / "in", tmp_path / "m2")


@pytest.fixture
def original(tmp_path: Path, model_dir: Path) -> Memory:
    """A memory with columns, extra, urls and a deleted row."""
    fields = [
        b'{"url": "http://x/%d", "n": %d, "more": {"deep": [1, null]}, "key": "theirs"}' % (i, i) for i in range(4)
    ]
    members = [
        m
        for i in range(4)
        for m in ((f"k{i}.png", picture(i)), (f"k{i}.txt", f"text {i}".encode()), (f"k{i}.json", fields[i]))
    ]
    (tmp_path / "a.tar").write_bytes(tar_bytes(members))
    (tmp_path / "b.tar").write_bytes(tar_bytes(good_pairs(["z"])))
    embed(
        [str(tmp_path / "a.tar"), str(tmp_path / "b.tar")],
        str(tmp_path / "original"),
        encoder=EncoderConfig(model=f"local-dir:{model_dir}"),
        config=EmbedConfig(columns=("n:int",)),
        runner=LocalRunner(),
    )
    return Memory.open(tmp_path / "original").delete(ids=[2])


def export(memory: Memory, kind: Any) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        assert export_table(memory, str(path), kind) == 4
        return path

    return write


@pytest.mark.parametrize("through", ["itself", "parquet", "lance"])
def test_a_memory_comes_back_as_it_was(tmp_path: Path, original: Memory, through: Any) -> None:
    """Metadata was nested into itself, and checksums and members were forgotten."""
    if through == "lance":
        pytest.importorskip("lance")
    root = tmp_path / "original"
    if through != "itself":
        root = export(original, through)(tmp_path / ("out.lance" if through == "lance" else "out"))
    bring(root, tmp_path / "again", columns=("n:int",))
    again = Memory.open(tmp_path / "again")
    before, after = every(original), every(again)
    assert original.metadata(before).to_pylist() == again.metadata(after).to_pylist()
    for keys in ("image", "text"):
        assert np.array_equal(original.vectors(before, keys), again.vectors(after, keys))


def test_an_export_does_not_mix_with_what_is_there(tmp_path: Path, original: Memory) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "other.parquet").write_bytes(b"x")
    with pytest.raises(UsageError, match="not empty"):
        export_table(original, str(tmp_path / "out"), "parquet")


NAMES = {str(i): 120 for i in range(12)}


def publish_index(path: Path, vectors: Any, key: str = "IVF8,PQ8x8np", ids: Any = None) -> Path:
    made = faiss.index_factory(D, key, faiss.METRIC_INNER_PRODUCT)
    made.train(vectors)
    if ids is None:
        made.add(vectors)
    else:
        made.add_with_ids(vectors, ids)
    faiss.write_index(made, str(path))
    return path


def adopted(tmp_path: Path, published: Path, keys: Any = "image") -> Memory:
    adopt(str(tmp_path / "m"), str(tmp_path / "in"), published, keys=keys, runner=LocalRunner())
    return Memory.open(tmp_path / "m")


def in_name_order(made: dict[Any, Any], side: str = "image") -> Any:
    return np.concatenate([made[side, name] for name in sorted(NAMES)])


@pytest.mark.slow
@pytest.mark.parametrize("key", ["IVF8,PQ8x8np", "IVF8,Flat", "IVF4,SQ8", "OPQ8_16,IVF4,PQ8x4"])
def test_rows_are_numbered_by_their_files_names_whenever_they_came(tmp_path: Path, key: str) -> None:
    """Of files 10 and 11, imported later, the index's numbers were taken for those of files 2 to 9."""
    made = folders(tmp_path / "in", {name: n for name, n in NAMES.items() if len(name) == 1}, caption="c")
    bring(tmp_path / "in", tmp_path / "m")
    made = folders(tmp_path / "in", NAMES, caption="c")
    bring(tmp_path / "in", tmp_path / "m")
    memory = adopted(tmp_path, publish_index(tmp_path / "i", in_name_order(made), key))
    for name in NAMES:
        queries = made["image", name][:5]
        hits = memory.search(vectors=queries, k=10, nprobe=8, refine=10)
        assert memory.rows(hits.ids[:, 0])["caption"].to_pylist() == [f"c {name} {row}" for row in range(5)]


WRONG: dict[str, Callable[[dict[Any, Any], Any], dict[str, Any]]] = {
    "ids shifted by one": lambda _made, whole: {"vectors": np.roll(whole, 1, axis=0)},
    "two files swapped": lambda made, _whole: {
        "vectors": np.concatenate([made["image", name] for name in sorted(NAMES, reverse=True)])
    },
    "rows of one file permuted": lambda _made, whole: {
        "vectors": np.concatenate([whole[:120], whole[120:240][::-1], whole[240:]])
    },
    "numeric order of names": lambda made, _whole: {
        "vectors": np.concatenate([made["image", str(i)] for i in range(12)])
    },
    "of the texts": lambda made, _whole: {"vectors": in_name_order(made, "text")},
    "of an earlier state": lambda _made, whole: {
        "vectors": np.concatenate([whole[:600], unit(120, 77), whole[720:]]),
    },
    "numbered from one": lambda _made, whole: {"vectors": whole, "ids": np.arange(1, 1441)},
    "numbers twice": lambda _made, whole: {"vectors": whole, "ids": np.arange(1440) // 2 * 2},
}


@pytest.mark.parametrize("name", WRONG)
def test_an_index_of_something_else_is_refused_with_how_many_rows_agree(tmp_path: Path, name: str) -> None:
    made = folders(tmp_path / "in", NAMES, caption="c")
    bring(tmp_path / "in", tmp_path / "m")
    published = publish_index(tmp_path / "i", **WRONG[name](made, in_name_order(made)))
    with pytest.raises(IndexBuildError, match=r"of 1,440 rows compared, the codes of [\d,]+ agree|does not number"):
        adopted(tmp_path, published)
    assert not Memory.open(tmp_path / "m").snapshot.indexes


@pytest.mark.parametrize("damage", ["cut", "empty", "of another index"])
@pytest.mark.parametrize("merged", [True, False])
def test_lists_that_do_not_belong_to_their_index_are_refused_and_end_no_process(
    tmp_path: Path, damage: str, merged: bool
) -> None:
    made = folders(tmp_path / "in", NAMES, caption="c")
    bring(tmp_path / "in", tmp_path / "m")
    published_index(tmp_path / "i", in_name_order(made), "IVF8,PQ8x8np", merged)
    published_index(tmp_path / "j", unit(1440, 5), "IVF8,PQ8x8np", merged)
    file, other = (path / "merged_index.ivfdata" if merged else path for path in (tmp_path / "i", tmp_path / "j"))
    data = file.read_bytes()
    file.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "of another index": other.read_bytes()}[damage])
    with pytest.raises(IndexBuildError, match=r"belong together|cannot be read|does not number|is not an index of"):
        adopted(tmp_path, tmp_path / "i")


def test_an_index_of_texts_is_one_of_texts(tmp_path: Path) -> None:
    made = folders(tmp_path / "in", NAMES, caption="c")
    bring(tmp_path / "in", tmp_path / "m")
    published = publish_index(tmp_path / "i", in_name_order(made, "text"))
    memory = adopted(tmp_path, published, "text")
    hits = memory.search(vectors=made["text", "7"][:4], keys="text", k=5, nprobe=8, refine=10)
    assert memory.rows(hits.ids[:, 0])["caption"].to_pylist() == [f"c 7 {row}" for row in range(4)]


def test_an_index_of_what_was_imported_again_is_that_of_the_newest_rows(tmp_path: Path) -> None:
    made = folders(tmp_path / "in", NAMES, caption="c")
    bring(tmp_path / "in", tmp_path / "m")
    for side, folder in (("image", "img_emb"), ("text", "text_emb")):
        made[side, "3"] = unit(120, 99)
        np.save(tmp_path / "in" / folder / f"{folder}_3.npy", made[side, "3"])
    bring(tmp_path / "in", tmp_path / "m")
    memory = adopted(tmp_path, publish_index(tmp_path / "i", in_name_order(made)))
    hits = memory.search(vectors=made["image", "3"][:4], k=5, nprobe=8, refine=10)
    assert (hits.ids[:, 0] >> 32).tolist() == [12] * 4
    assert memory.rows(hits.ids[:, 0])["caption"].to_pylist() == [f"c 3 {row}" for row in range(4)]


def test_an_imported_memory_can_be_indexed_here(tmp_path: Path) -> None:
    folders(tmp_path / "in", {"0": 50}, caption="c")
    bring(tmp_path / "in", tmp_path / "m")
    index(str(tmp_path / "m"), keys=("image",), config=IndexConfig(), runner=LocalRunner())
    assert Memory.open(tmp_path / "m").index("image").n_rows == 50


def test_two_files_of_one_number_are_refused(tmp_path: Path) -> None:
    for folder in ("img_emb", "metadata"):
        (tmp_path / folder).mkdir()
    np.save(tmp_path / "img_emb" / "img_emb_0.npy", np.eye(8, dtype=np.float32)[:3])
    for name in ("0", "00"):
        pq.write_table(pa.table({"caption": [name] * 3}), tmp_path / "metadata" / f"metadata_{name}.parquet")
    with pytest.raises(SourceError, match="have the same number"):
        find_published(str(tmp_path))
    (tmp_path / "metadata" / "metadata_00.parquet").unlink()
    assert len(find_published(str(tmp_path))) == 1
    np.save(tmp_path / "img_emb" / "0.npy", np.eye(8, dtype=np.float32)[:3])
    with pytest.raises(SourceError, match="have the same number"):
        find_published(str(tmp_path))


def test_an_index_of_arrays_side_by_side_is_compared_with_them(tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    vectors = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for name, part in zip(("0", "1", "10", "2"), np.split(vectors, 4), strict=True):
        np.save(root / f"{name}.npy", part)
    import_embeddings(str(root), str(tmp_path / "m"), encoder=None, config=EmbedConfig(), runner=LocalRunner())
    published_index(tmp_path / "other.index", vectors[::-1].copy(), "IVF4,Flat", False)
    with pytest.raises(IndexBuildError, match=r"file 0\.npy: 0 of 15"):
        adopt(str(tmp_path / "m"), str(root), tmp_path / "other.index", keys="image", runner=LocalRunner())
    published_index(tmp_path / "image.index", vectors, "IVF4,Flat", False)
    assert adopt(str(tmp_path / "m"), str(root), tmp_path / "image.index", keys="image", runner=LocalRunner()).number
