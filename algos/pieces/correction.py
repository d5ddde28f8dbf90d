"""Correction for a sampler that differs from the trainer's old policy: importance weights.

The same parameters give different log-probabilities in another engine (kernels, precision, stale parameters). Let mu be
the sampler and w_t = pi_old / mu. The policy term of the loss is multiplied by a weight made of w_t, which carries no
gradient. The KL term is not multiplied. Sources: decoupled PPO, arXiv:2110.00641; Yao et al. 2025, "Your Efficient RL
Framework Secretly Brings You Off-Policy RL Training" (truncation); IcePop, arXiv:2510.18855 (masks); Liu, Li et al.
2025, "When Speed Kills Stability" (geometric mask).
"""

from typing import Literal

import torch
from torch import Tensor

from algos.pieces.kl import log_ratio
from algos.pieces.masked import masked_mean, masked_sum

Correction = Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask", "geometric_mask"]


def weights(old_logprobs: Tensor, sampler_logprobs: Tensor | None, mask: Tensor, hparams) -> Tensor:
    """Weights (B, T), 0 on padding, no grad. In sequence modes every token has the product over its response.

    truncate: min(w, correction_high). mask: w where correction_low <= w <= correction_high, else 0. geometric_mask: 1
    or 0 for a whole response, by whether the geometric mean of its tokens' w lies in that range, whatever its length.
    """
    if sampler_logprobs is None:
        raise ValueError(f"correction {hparams.correction} needs the sampler's log-probabilities, got None")
    with torch.no_grad():
        difference = log_ratio(old_logprobs, sampler_logprobs, mask)
        if hparams.correction.startswith("sequence"):
            difference = masked_sum(difference, mask, dim=1, keepdim=True).clamp(-20, 20).expand_as(difference)
        if hparams.correction == "geometric_mask":
            difference = masked_mean(difference, mask, dim=1, keepdim=True).expand_as(difference)
        weight = difference.exp()
        if hparams.correction.endswith("truncate"):
            weight = weight.clamp(max=hparams.correction_high)
        else:
            inside = (weight >= hparams.correction_low) & (weight <= hparams.correction_high)
            kept = torch.ones_like(weight) if hparams.correction == "geometric_mask" else weight
            weight = torch.where(inside, kept, torch.zeros_like(weight))
        return torch.where(mask, weight, torch.zeros_like(weight))


@torch.no_grad()
def gap_metrics(old_logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """The distribution over valid tokens of d = log-probability by the trainer minus by the sampler, in nats.

    Logged in every run. k1 = mean(-d) and k3 = mean(w - 1 - log w) estimate KL(sampler || trainer). ess is the
    effective share of tokens under the weights w = exp(d). The sequence gap is the mean over responses of |mean d|.
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
