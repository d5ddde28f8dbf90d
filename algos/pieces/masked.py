"""Masked sum, mean, variance and whitening.

A mask selects (torch.where) and never multiplies. Values where the mask is False may be NaN or infinite; they have no
effect on the result or on the gradient.
"""

import torch
from torch import Tensor


def masked_sum(x: Tensor, mask: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """Sum of x where mask is True; x and mask of one shape, mask bool."""
    selected = torch.where(mask, x, torch.zeros((), dtype=x.dtype, device=x.device))
    return selected.sum() if dim is None else selected.sum(dim=dim, keepdim=keepdim)


def masked_mean(x: Tensor, mask: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """Mean of x where mask is True; 0 where nothing is selected."""
    count = mask.sum() if dim is None else mask.sum(dim=dim, keepdim=keepdim)
    return masked_sum(x, mask, dim, keepdim) / count.clamp(min=1)


def masked_var(x: Tensor, mask: Tensor, ddof: int = 1) -> Tensor:
    """Variance of x where mask is True, divisor n - ddof; 0 where n <= ddof."""
    deviations = torch.where(mask, x, x.new_zeros(())) - masked_mean(x, mask)
    return masked_sum(deviations**2, mask) / (mask.sum() - ddof).clamp(min=1)


def masked_whiten(x: Tensor, mask: Tensor, shift_mean: bool = True, ddof: int = 1) -> Tensor:
    """(x - mean) / sqrt(var + 1e-8) over the mask, 0 elsewhere; shift_mean=False adds the mean back.

    TRL and verl use the sample variance (ddof=1).
    """
    mean = masked_mean(x, mask)
    centered = torch.where(mask, x, mean) - mean
    whitened = centered * torch.rsqrt(masked_var(x, mask, ddof) + 1e-8)
    if not shift_mean:
        whitened = whitened + mean
    return torch.where(mask, whitened, torch.zeros_like(whitened))
