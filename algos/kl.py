"""Per-token estimates of KL(policy || reference) from the log-probabilities of sampled tokens.

Source: Schulman 2020, "Approximating KL divergence". With u = ref_logprobs - logprobs and tokens drawn from
the policy, k1 = -u is unbiased and of any sign, k2 = u^2 / 2 biased and of low variance, k3 = exp(u) - 1 - u
unbiased and never negative. That is about values. As losses they differ: k2 has the gradient of
KL(policy || reference), k3 that of KL(reference || policy), k1 none in expectation (arXiv:2510.01555).
"""

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0  # exp(20) is 5e8: what lies beyond is an outlier, not information


def log_ratio(logprobs: Tensor, other_logprobs: Tensor, mask: Tensor) -> Tensor:
    """logprobs - other_logprobs where mask is True, else 0; clamped to +-20 so that its exponential stays finite.

    The selection stands right behind the subtraction, so that NaN in padding reaches neither value nor gradient.
    """
    difference = torch.where(mask, logprobs - other_logprobs, torch.zeros_like(logprobs))
    return difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def kl_k1(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:
    return log_ratio(logprobs, ref_logprobs, mask)


def kl_k2(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:
    return 0.5 * log_ratio(ref_logprobs, logprobs, mask) ** 2


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:
    u = log_ratio(ref_logprobs, logprobs, mask)
    return torch.expm1(u) - u
