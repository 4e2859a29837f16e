"""The two steps of index building that a GPU speeds up: k-means, and assigning rows to inverted lists.

They run in faiss's GPU code if its build has it, in torch if only torch sees a GPU, else in faiss on the CPU. Only the
centroids and a block of rows are on the device; codes are computed, and the index is kept, on the CPU.
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
"""Library of the two steps: faiss on the CPU, faiss on a GPU, or torch on its device."""

BLOCK_BYTES = 1 << 30
"""Size, on the device, of the scores of a block of rows with all centroids."""


def choose_backend(device: Device) -> Backend:
    """Choose the library of the two steps on this machine.

    Raises:
        UsageError: ``cuda`` is given and no GPU is seen.
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
        # An index whose quantizer holds its centroids already trains only its transforms and codebooks.
        rows = transformed(index, sample, train=True)
        ivf.quantizer.add(_spherical_kmeans(rows, ivf.nlist, ivf.cp.niter, ivf.cp.seed))
    index.train(sample)


def adder(index: Any, backend: Backend) -> Callable[[Scores, Ids], None]:
    """Return a function that adds rows f32[n, d] with ids i64[n] to a trained IVF index.

    On a GPU the nearest list of a row is exact, among all centroids; on the CPU it is the index's own search.
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
    """f32[nlist, d] centroids → a function: f32[n, d] rows → i64[n] lists of largest inner product."""
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
    """f32[m, d] rows → f32[n_lists, d] unit centroids, by faiss's Lloyd iterations with inner product."""
    import torch
    from faiss.contrib.clustering import kmeans

    most = faiss.ClusteringParameters().max_points_per_centroid * n_lists
    if len(sample) > most:
        sample = sample[np.sort(np.random.default_rng(seed).choice(len(sample), most, replace=False))]
    data = _KMeansRows(torch.from_numpy(np.ascontiguousarray(sample)).to(_torch_device()))
    with redirect_stdout(sys.stderr):  # faiss prints a line, and stdout is for results
        centroids = kmeans(n_lists, data, niter=n_iterations, seed=seed, verbose=False)
    trained: Scores = _unit(centroids).cpu().numpy()
    return trained


class _KMeansRows:
    """Training rows of k-means on their device, with the interface of faiss's loop."""

    def __init__(self, rows: "torch.Tensor") -> None:
        self.rows = rows  # f32[m, d]

    def count(self) -> int:
        return self.rows.shape[0]

    def dim(self) -> int:
        return self.rows.shape[1]

    def get_subset(self, rows: Ids) -> "torch.Tensor":
        return self.rows[rows]

    def assign_to(self, centroids: "torch.Tensor") -> tuple[Ids, "torch.Tensor", "torch.Tensor"]:
        """Return (i64[m] nearest centroids, f32[m] their scores, f32[k, d] sums of each centroid's rows)."""
        import torch

        scores, nearest = _best(self.rows, _unit(centroids))
        with _deterministic():
            sums = torch.zeros_like(centroids).index_add_(0, nearest, self.rows)
        return nearest.cpu().numpy(), scores, sums


def _best(rows: "torch.Tensor", centroids: "torch.Tensor") -> tuple["torch.Tensor", "torch.Tensor"]:
    """Return (f32[n] largest inner product, i64[n] its centroid), computed in blocks of rows."""
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
def _deterministic() -> "Iterator[None]":
    """Make torch's sums on a GPU deterministic in this block."""
    import torch

    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def transformed(index: Any, rows: Scores, *, train: bool = False) -> Scores:
    """Apply an index's transforms: f32[n, d] rows → f32[n, d']; with ``train``, train them on the rows first."""
    if isinstance(index, faiss.IndexPreTransform):
        for i in range(index.chain.size()):
            step = faiss.downcast_VectorTransform(index.chain.at(i))
            if train:
                step.train(rows)
            rows = step.apply(rows)
    return rows
