"""Settings of ``memory-builder index``."""

import os
from dataclasses import dataclass

from memory_builder.ann.kmeans import Device
from memory_builder.ann.quantizer import check_key, without_polysemous
from memory_builder.errors import UsageError

TARGET_RECALL = 0.95


AUTO = "auto"


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexConfig:
    """Index key, training and parts of the index of one modality."""

    max_memory: str = "16G"
    """Memory budget of the index; decides how strongly vectors are compressed."""
    index_key: str | None = None
    """faiss index key (default: autofaiss's for the budget); auto: also try 4-bit RaBitQ and PQ on a sample, and use
    the cheapest that reaches the target."""
    target_recall: float = TARGET_RECALL
    """recall@10 to tune the search parameters for."""
    train_points_per_list: int = 100
    """Training rows for each inverted list."""
    part_rows: int = 1_000_000
    """Approximate rows in a part, the unit of filling, retry and memory."""
    train_threads: int = os.cpu_count() or 1
    """Training threads; the trained bytes depend on their number."""
    seed: int = 0
    """Seed that draws training rows and held-out queries."""
    device: Device = "auto"
    """Device of k-means and of assigning rows to lists; auto: a GPU if the worker has one."""

    def __post_init__(self) -> None:
        if not 0 < self.target_recall <= 1:
            raise UsageError(f"--target-recall {self.target_recall}: expected more than 0 and at most 1")
        for name in ("train_points_per_list", "part_rows", "train_threads"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: at least 1")
        if self.index_key not in (None, AUTO):
            check_key(self.index_key)
            object.__setattr__(self, "index_key", without_polysemous(self.index_key))
