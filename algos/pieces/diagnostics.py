"""Metrics of the importance ratios, which every policy loss reports. They carry no gradient.

Metrics of micro-batches add up to the metrics of the optimizer step, because each is divided by the step's totals.
Metrics whose names end in _min or _max combine by minimum or maximum.
"""

import torch
from torch import Tensor

from algos.pieces.masked import masked_sum
from algos.pieces.types import Totals


@torch.no_grad()
def ratio_metrics(log_ratio: Tensor, response_mask: Tensor, totals: Totals) -> dict[str, Tensor]:
    """Token ratios, and KL(old || new) by two estimators; log_ratio and response_mask (B, T).

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
