"""Trainer against sampler: importance weights for rollouts whose sampler differs from the trainer's old policy.

The same weights give different log-probabilities in another engine (kernels, precision, stale weights). With
w_t = pi_old / mu, mu being the sampler, the policy term is multiplied by a weight that carries no gradient; the KL
term is not. Sources: decoupled PPO, arXiv:2110.00641; Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You
Off-Policy RL Training" (truncation); IcePop, arXiv:2510.18855 (masks).
"""

from typing import Literal

import torch
from torch import Tensor

from algos.pieces.kl import log_ratio
from algos.pieces.masked import masked_mean, masked_sum

Correction = Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]


def weights(old_logprobs: Tensor, sampler_logprobs: Tensor | None, mask: Tensor, config) -> Tensor:
    """Weights (B, T), 0 on padding, no grad; sequence modes hold the product over a response in all its tokens.

    truncate: min(w, correction_high). mask: w where correction_low <= w <= correction_high, else 0.
    """
    if sampler_logprobs is None:
        raise ValueError(f"correction {config.correction} needs the sampler's log-probabilities, got None")
    with torch.no_grad():
        difference = log_ratio(old_logprobs, sampler_logprobs, mask)
        if config.correction.startswith("sequence"):
            difference = masked_sum(difference, mask, dim=1, keepdim=True).clamp(-20, 20).expand_as(difference)
        weight = difference.exp()
        if config.correction.endswith("truncate"):
            weight = weight.clamp(max=config.correction_high)
        else:
            inside = (weight >= config.correction_low) & (weight <= config.correction_high)
            weight = torch.where(inside, weight, torch.zeros_like(weight))
        return torch.where(mask, weight, torch.zeros_like(weight))


@torch.no_grad()
def gap_metrics(old_logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """The distribution of d = trainer minus sampler log-probability over valid tokens, in nats; logged in every run.

    k1 = mean(-d) and k3 = mean(w - 1 - log w) estimate KL(sampler || trainer); ess is the effective share of tokens
    under the weights w = exp(d); the sequence gap is the mean over responses of |mean d|.
    """
    gap = log_ratio(old_logprobs, sampler_logprobs, mask)
    inside = gap[mask]
    weight = inside.exp()
    return {
        "sampler_gap_mean": inside.abs().mean(),
        "sampler_gap_std": inside.std() if len(inside) > 1 else inside.new_zeros(()),
        "sampler_gap_p01": inside.quantile(0.01),
        "sampler_gap_p50": inside.quantile(0.5),
        "sampler_gap_p99": inside.quantile(0.99),
        "sampler_gap_largest": inside.abs().max(),
        "sampler_gap_probability": (old_logprobs[mask].exp() - sampler_logprobs[mask].exp()).abs().max(),
        "sampler_gap_sequence": masked_mean(gap, mask, dim=1).abs().mean(),
        "sampler_kl_k1": -inside.mean(),
        "sampler_kl_k3": (torch.expm1(inside) - inside).mean(),
        "sampler_ess": weight.sum() ** 2 / (len(weight) * (weight**2).sum()),
    }
