"""What every policy loss reports about its ratios. No gradients, no effect on training.

Metrics of micro-batches add up to those of the optimiser step, because each is divided by the step's totals;
names that end in _min and _max combine by minimum and maximum.
"""

import torch
from torch import Tensor

from algos.masked import masked_sum


@torch.no_grad()
def ratio_metrics(log_ratio: Tensor, response_mask: Tensor, totals) -> dict[str, Tensor]:
    """Token ratios and the approximate KL(old || new), both estimators; log_ratio and response_mask (B, T).

    The samples come from the old policy, so k1 = old - new = -log_ratio and k3 = ratio - 1 - log_ratio.
    """
    ratio = log_ratio.exp()
    inside = torch.where(response_mask, ratio, torch.ones_like(ratio))
    return {
        "ratio_mean": masked_sum(ratio, response_mask) / totals.response_tokens,
        "ratio_min": inside.min(),
        "ratio_max": inside.max(),
        "approx_kl_k1": masked_sum(-log_ratio, response_mask) / totals.response_tokens,
        "approx_kl_k3": masked_sum(torch.expm1(log_ratio) - log_ratio, response_mask) / totals.response_tokens,
    }


@torch.no_grad()
def clip_metrics(
    ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float, mask: Tensor, count: float
) -> dict[str, Tensor]:
    """Share of the `count` terms that clipping silences. ratio and mask (B, T), or (B, 1) for whole responses.

    Only active clips count: above the range with a positive advantage, below it with a negative one. On the other
    side of each the minimum picks the unclipped term and the gradient flows.
    """
    high = (ratio > 1 + clip_high) & (advantages > 0) & mask
    low = (ratio < 1 - clip_low) & (advantages < 0) & mask
    return {
        "clip_fraction": (high | low).sum() / count,
        "clip_fraction_low": low.sum() / count,
        "clip_fraction_high": high.sum() / count,
    }
