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
    """How to index one key modality."""

    max_memory: str = "16G"
    """What the index may take in memory; decides how far vectors are compressed."""
    index_key: str | None = None
    """A faiss key, instead of the one autofaiss has for the budget; auto: also try 4-bit RaBitQ and PQ on a sample, and
    take the cheapest that reaches the target."""
    target_recall: float = TARGET_RECALL
    """recall@10 that searches are tuned to."""
    train_points_per_list: int = 100
    """Rows in the training sample for each inverted list."""
    part_rows: int = 1_000_000
    """Rows in a part, about: the unit of filling, retry and memory."""
    train_threads: int = os.cpu_count() or 1
    """Threads to train with; the trained bytes depend on it."""
    seed: int = 0
    """Of the draw of training rows and held-out queries."""
    device: Device = "auto"
    """Where k-means runs and rows find their lists; auto: on a GPU where the worker has one."""

    def __post_init__(self) -> None:
        if not 0 < self.target_recall <= 1:
            raise UsageError(f"--target-recall {self.target_recall}: expected more than 0 and at most 1")
        for name in ("train_points_per_list", "part_rows", "train_threads"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: at least 1")
        if self.index_key not in (None, AUTO):
            check_key(self.index_key)
            object.__setattr__(self, "index_key", without_polysemous(self.index_key))
