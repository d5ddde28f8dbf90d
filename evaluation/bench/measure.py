"""Statistics of timings, and what the machine could do at best. No models."""

import math
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from evaluation.statistics import Interval

Result = TypeVar("Result")

RESAMPLES = 2000
NOMINAL = {  # GPU's name contains -> dense bfloat16 FLOP/s, bytes/s of memory; NVIDIA's data sheets
    "H200": (989e12, 4.8e12),
    "H100": (989e12, 3.35e12),
    "A100": (312e12, 2.0e12),
}


def ratio_of_medians(slow: Sequence[float], fast: Sequence[float], seed: int = 0) -> Interval:
    """median(slow) / median(fast) with a 95 % percentile-bootstrap interval of times.

    slow[i] was measured beside fast[i]. Pairs are drawn together, so that a slow minute of the machine, which both
    sides of a pair share, does not widen the interval. One pair has no interval. Raises ValueError unless both have the
    same number, at least one, of times above 0.
    """
    a, b = np.asarray(slow, dtype=float), np.asarray(fast, dtype=float)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"a ratio needs pairs of times, got {len(slow)} and {len(fast)}")
    if min(a.min(), b.min()) <= 0:
        raise ValueError(f"times must be above 0, got {min(a.min(), b.min())}")
    ratio = float(np.median(a) / np.median(b))
    if len(a) == 1:
        return Interval(ratio, math.nan, math.nan)
    rows = np.random.default_rng(seed).integers(len(a), size=(RESAMPLES, len(a)))
    resampled = np.median(a[rows], axis=1) / np.median(b[rows], axis=1)
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Interval(ratio, float(low), float(high))


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Slope of log(seconds) on log(size) by least squares, and its standard error; NaN for two points.

    Raises ValueError for fewer than two different sizes, and for a number that has no logarithm.
    """
    if len(set(sizes)) < 2 or len(sizes) != len(seconds):
        raise ValueError(f"an exponent needs at least two sizes with one time each, got {list(sizes)}")
    if min(*sizes, *seconds) <= 0:
        raise ValueError("sizes and times must be above 0")
    x, y = np.log(np.asarray(sizes, dtype=float)), np.log(np.asarray(seconds, dtype=float))
    x, y = x - x.mean(), y - y.mean()
    slope = float((x * y).sum() / (x * x).sum())
    if len(sizes) == 2:
        return slope, math.nan
    residual = float(((y - slope * x) ** 2).sum()) / (len(sizes) - 2)
    return slope, math.sqrt(residual / float((x * x).sum()))


def timed(function: Callable[[], Result], device) -> tuple[float, Result]:
    """Seconds and result of one call. The device's queue is emptied before the call and after it."""
    wait(device)
    start = time.perf_counter()
    result = function()
    wait(device)
    return time.perf_counter() - start, result


def wait(device) -> None:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def machine_limits(device, dtype: str = "float32", repeats: int = 10) -> dict:
    """The best of `repeats` matrix products (FLOP/s) and memory copies (bytes/s, read and written) on this device.

    With CUDA also the data sheet's figures, None for a GPU that NOMINAL does not know.
    """
    import torch

    cuda = device.type == "cuda"
    size = 8192 if cuda else 1024
    a, b = (torch.randn(size, size, device=device).to(getattr(torch, dtype)) for _ in range(2))
    source = torch.ones(2**30 if cuda else 2**26, dtype=torch.float32, device=device)  # 4 GiB; 256 MiB on the CPU
    target = torch.empty_like(source)
    limits = {
        "matmul_flops": 2 * size**3 / min(timed(lambda: a @ b, device)[0] for _ in range(repeats + 1)),
        "copy_bytes_per_second": 2
        * source.nbytes
        / min(timed(lambda: target.copy_(source), device)[0] for _ in range(repeats + 1)),
        "dtype": dtype,
        "threads": torch.get_num_threads(),
    }
    if cuda:
        name = torch.cuda.get_device_name(device)
        known = next((figures for key, figures in NOMINAL.items() if key in name), (None, None))
        limits |= {"nominal_bfloat16_flops": known[0], "nominal_bytes_per_second": known[1]}
    return limits
