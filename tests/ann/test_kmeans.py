"""Lists made by torch serve as well as those faiss makes, on the CPU here and on a GPU where there is one."""

import faiss
import numpy as np
import pytest
import torch

from memory_builder.ann.kmeans import adder, choose_backend, transformed
from memory_builder.ann.quantizer import train_quantizer
from memory_builder.errors import UsageError

pytestmark = pytest.mark.slow

D, N_LISTS = 32, 64
KEYS = [f"IVF{N_LISTS},Flat", f"IVF{N_LISTS}_HNSW16,SQ8", f"OPQ16_32,IVF{N_LISTS},PQ16x4np", f"IVF{N_LISTS},RaBitQ4"]
has_faiss_gpu = faiss.get_num_gpus() > 0


def rows(n: int, seed: int) -> np.ndarray:
    """f32[n, D] unit rows in 200 clusters."""
    centres = np.random.default_rng(0).standard_normal((200, D))
    rng = np.random.default_rng(seed)
    vectors = centres[rng.integers(0, 200, n)] + 0.5 * rng.standard_normal((n, D))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def built(key: str, backend: str) -> faiss.Index:
    index = train_quantizer(key, rows(3_000, 1), threads=1, backend=backend)
    add = adder(index, backend)
    for part in np.array_split(np.arange(10_000), 3):
        add(rows(10_000, 2)[part], part + (7 << 32))
    add(np.zeros((0, D), np.float32), np.zeros(0, np.int64))
    return index


def recall(index: faiss.Index, nprobe: int = 8) -> float:
    """recall@10 by code."""
    queries = rows(300, 3)
    faiss.extract_index_ivf(index).nprobe = nprobe
    truth = faiss.knn(queries, rows(10_000, 2), 10, faiss.METRIC_INNER_PRODUCT)[1] + (7 << 32)
    return float(np.mean([np.isin(a, b).mean() for a, b in zip(index.search(queries, 10)[1], truth, strict=True)]))


@pytest.mark.parametrize("key", KEYS)
def test_an_index_made_by_torch_finds_as_much_as_one_made_by_faiss(key: str) -> None:
    by_torch, by_faiss = built(key, "torch"), built(key, "cpu")
    assert by_torch.ntotal == by_faiss.ntotal == 10_000
    assert recall(by_torch) > recall(by_faiss) - 0.02
    assert recall(by_faiss) > 0.4, "or the comparison says nothing"


def test_every_row_goes_to_the_list_it_has_most_in_common_with() -> None:
    index = built(f"OPQ16_32,IVF{N_LISTS}_HNSW16,PQ16x4np", "torch")
    ivf = faiss.downcast_index(faiss.extract_index_ivf(index))
    centroids = faiss.downcast_index(ivf.quantizer).reconstruct_n(0, N_LISTS)
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, rtol=1e-5)
    nearest = (transformed(index, rows(10_000, 2)) @ centroids.T).argmax(axis=1)
    for number in range(N_LISTS):
        size = ivf.invlists.list_size(number)
        ids = faiss.rev_swig_ptr(ivf.invlists.get_ids(number), size) if size else np.zeros(0, np.int64)
        assert (nearest[ids & 0xFFFFFFFF] == number).all()


@pytest.mark.parametrize("key", KEYS[:2])
def test_torch_trains_the_same_bytes_twice(key: str) -> None:
    first, second = (train_quantizer(key, rows(3_000, 1), threads=1, backend="torch") for _ in range(2))
    np.testing.assert_array_equal(faiss.serialize_index(first), faiss.serialize_index(second))


def test_no_list_is_empty_of_training_rows_even_when_rows_repeat() -> None:
    repeated = np.concatenate([np.repeat(rows(10, 1), 100, axis=0), rows(400, 2)])
    index = train_quantizer(f"IVF{N_LISTS},Flat", repeated, threads=1, backend="torch")
    assert np.isfinite(index.quantizer.reconstruct_n(0, N_LISTS)).all()


def test_the_device_is_chosen_by_what_there_is() -> None:
    assert choose_backend("cpu") == "cpu"
    if has_faiss_gpu:
        assert choose_backend("auto") == choose_backend("cuda") == "faiss"
    elif torch.cuda.is_available():
        assert choose_backend("auto") == choose_backend("cuda") == "torch"
    else:
        assert choose_backend("auto") == "cpu"
        with pytest.raises(UsageError, match="--device cuda: neither faiss nor torch sees a GPU"):
            choose_backend("cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
@pytest.mark.parametrize("key", KEYS)
def test_on_a_gpu_torch_finds_as_much_as_the_cpu_within_a_hundredth(key: str) -> None:
    assert abs(recall(built(key, "torch")) - recall(built(key, "cpu"))) < 0.01


@pytest.mark.gpu
@pytest.mark.skipif(not has_faiss_gpu, reason="faiss sees no GPU")
@pytest.mark.parametrize("key", KEYS)
def test_on_a_gpu_faiss_finds_as_much_as_the_cpu_within_a_hundredth(key: str) -> None:
    assert abs(recall(built(key, "faiss")) - recall(built(key, "cpu"))) < 0.01
