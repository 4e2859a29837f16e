"""The limit beside a number: how fast this machine multiplies."""

import statistics
import time

import torch


def matrix_rate(dtype: torch.dtype, device: torch.device, *, n: int = 2_048, rounds: int = 5) -> float:
    """Multiply-adds a second of a product of square matrices: the median of some, after one that does not count."""
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        product = a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
        del product
    return n**3 / statistics.median(seconds[1:])
