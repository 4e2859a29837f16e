"""The two steps of building an index that a GPU is worth having for: k-means over the lists, and finding a row's list.

With faiss's own GPU code where its build has it, through torch where only that sees a device, else on the CPU. Only
the centroids and a block of rows are ever on the device; codes are made, and the index is held, on the CPU.
"""

import sys
from collections.abc import Callable
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any, Literal

import faiss
import numpy as np

from memory_builder.base.runner import has_gpu
from memory_builder.base.types import Ids, Scores
from memory_builder.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

Device = Literal["auto", "cpu", "cuda"]
Backend = Literal["cpu", "faiss", "torch"]
"""Who does the two steps: faiss on the CPU, faiss on a GPU, torch on whatever it has."""

BLOCK_BYTES = 1 << 30
"""Of the scores of a block of rows with every list, on the device."""


def choose_backend(device: Device) -> Backend:
    """Who does it on this machine.

    Raises:
        UsageError: ``cuda`` where there is none.
    """
    if device == "cpu":
        return "cpu"
    if faiss.get_num_gpus():
        return "faiss"
    if has_gpu():
        return "torch"
    if device == "cuda":
        raise UsageError("--device cuda: neither faiss nor torch sees a GPU here; use --device auto or cpu")
    return "cpu"


def train_index(index: Any, sample: Scores, backend: Backend) -> None:
    """Train an empty IVF index with a flat coarse quantizer on f32[m, d] rows.

    Rotations and codebooks are always trained on the CPU.
    """
    ivf = faiss.downcast_index(faiss.extract_index_ivf(index))
    if backend == "faiss":
        on_gpu = faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), ivf.d)
        ivf.clustering_index = on_gpu
        index.train(sample)
        ivf.clustering_index = None
        return
    if backend == "torch":
        # An index whose quantizer holds its centroids already trains only what remains.
        rows = transformed(index, sample, train=True)
        ivf.quantizer.add(_spherical_kmeans(rows, ivf.nlist, ivf.cp.niter, ivf.cp.seed))
    index.train(sample)


def adder(index: Any, backend: Backend) -> Callable[[Scores, Ids], None]:
    """What adds rows f32[n, d] with their ids i64[n] to a trained IVF index, each to the list it is nearest to.

    On a GPU that is found exactly, among all centroids; on the CPU as the index itself finds it.
    """
    if backend == "cpu" or not isinstance(index, faiss.IndexPreTransform | faiss.IndexIVF):
        add: Callable[[Scores, Ids], None] = index.add_with_ids
        return add
    ivf = faiss.downcast_index(faiss.extract_index_ivf(index))
    nearest = _nearest_list(faiss.downcast_index(ivf.quantizer).reconstruct_n(0, ivf.nlist), backend)

    def add_assigned(vectors: Scores, ids: Ids) -> None:
        if not len(ids):
            return
        rows = np.ascontiguousarray(transformed(index, vectors), np.float32)
        lists = nearest(rows)
        ivf.add_core(len(ids), faiss.swig_ptr(rows), faiss.swig_ptr(ids), faiss.swig_ptr(lists))
        index.ntotal = ivf.ntotal

    return add_assigned


def _nearest_list(centroids: Scores, backend: Backend) -> Callable[[Scores], Ids]:
    """f32[nlist, d] centroids → a function of f32[n, d] rows → i64[n] the list each has most in common with."""
    if backend == "faiss":
        flat = faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), centroids.shape[1])
        flat.add(centroids)
        return lambda rows: flat.search(rows, 1)[1].ravel()
    import torch

    on_device = torch.from_numpy(centroids).to(_torch_device())

    def nearest(rows: Scores) -> Ids:
        lists: Ids = _best(torch.from_numpy(rows).to(on_device.device), on_device)[1].cpu().numpy()
        return lists

    return nearest


def _spherical_kmeans(sample: Scores, n_lists: int, n_iterations: int, seed: int) -> Scores:
    """f32[m, d] rows → f32[n_lists, d] unit centroids: Lloyd's iterations by inner product, as faiss makes them."""
    import torch
    from faiss.contrib.clustering import kmeans

    most = faiss.ClusteringParameters().max_points_per_centroid * n_lists
    if len(sample) > most:
        sample = sample[np.sort(np.random.default_rng(seed).choice(len(sample), most, replace=False))]
    data = _Assigning(torch.from_numpy(np.ascontiguousarray(sample)).to(_torch_device()))
    with redirect_stdout(sys.stderr):  # it prints a line, and stdout is for results
        centroids = kmeans(n_lists, data, niter=n_iterations, seed=seed, verbose=False)
    trained: Scores = _unit(centroids).cpu().numpy()
    return trained


class _Assigning:
    """The rows k-means runs over, on their device, in the form faiss's own loop asks for."""

    def __init__(self, rows: "torch.Tensor") -> None:
        self.rows = rows  # f32[m, d]

    def count(self) -> int:
        return self.rows.shape[0]

    def dim(self) -> int:
        return self.rows.shape[1]

    def get_subset(self, rows: Ids) -> "torch.Tensor":
        return self.rows[rows]

    def assign_to(self, centroids: "torch.Tensor") -> tuple[Ids, "torch.Tensor", "torch.Tensor"]:
        """(i64[m] nearest centroid, f32[m] its score, f32[k, d] the sum of each centroid's rows)."""
        import torch

        scores, nearest = _best(self.rows, _unit(centroids))
        with _same_every_time():
            sums = torch.zeros_like(centroids).index_add_(0, nearest, self.rows)
        return nearest.cpu().numpy(), scores, sums


def _best(rows: "torch.Tensor", centroids: "torch.Tensor") -> tuple["torch.Tensor", "torch.Tensor"]:
    """(f32[n] greatest inner product, i64[n] whose it is), a block of rows at a time."""
    import torch

    block = max(1, BLOCK_BYTES // (4 * len(centroids)))
    best = [torch.max(rows[at : at + block] @ centroids.T, dim=1) for at in range(0, len(rows), block)]
    return torch.cat([scores for scores, _ in best]), torch.cat([lists for _, lists in best])


def _unit(rows: "torch.Tensor") -> "torch.Tensor":
    import torch

    return torch.nn.functional.normalize(rows, dim=1)


def _torch_device() -> "torch.device":
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def _same_every_time() -> "Iterator[None]":
    """Sums on a GPU whose order does not depend on chance."""
    import torch

    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def transformed(index: Any, rows: Scores, *, train: bool = False) -> Scores:
    """f32[n, d] rows as the lists of an index see them, f32[n, d']; its rotations are trained on them if asked."""
    if isinstance(index, faiss.IndexPreTransform):
        for i in range(index.chain.size()):
            step = faiss.downcast_VectorTransform(index.chain.at(i))
            if train:
                step.train(rows)
            rows = step.apply(rows)
    return rows
