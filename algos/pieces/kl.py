"""KL(policy || reference): per-token estimates from the sampled tokens' log-probabilities, and the exact one.

Source: Schulman 2020, "Approximating KL divergence". With u = ref_logprobs - logprobs and tokens drawn from the policy,
k1 = -u is unbiased and of any sign, k2 = u^2 / 2 is biased and of low variance, k3 = exp(u) - 1 - u is unbiased and
never negative. This holds for the values. As losses, k2 has the gradient of KL(policy || reference), k3 has the
gradient of KL(reference || policy), and k1 has no gradient in expectation (arXiv:2510.01555).
"""

from typing import Literal

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0  # exp(20) is 5e8: a larger ratio is an outlier and carries no information
KLEstimator = Literal["k1", "k2", "k3", "k3+", "full"]


def log_ratio(logprobs: Tensor, other_logprobs: Tensor, mask: Tensor) -> Tensor:
    """logprobs - other_logprobs where mask is True, else 0; clamped to +-20 so that its exponential stays finite.

    The selection directly follows the subtraction, so that NaN in padding reaches neither value nor gradient.
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


def kl_k3_plus(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:
    """The value of k3 with the gradient of k2, which is the gradient of the reverse KL (an option of verl)."""
    k2 = kl_k2(logprobs, ref_logprobs, mask)
    return k2 - k2.detach() + kl_k3(logprobs, ref_logprobs, mask).detach()


def kl_full(all_logprobs: Tensor, ref_all_logprobs: Tensor, direction: str = "reverse") -> Tensor:
    """Exact KL over the vocabulary, (..., V) and (..., V) -> (...).

    reverse: KL(policy || reference); forward: KL(reference || policy). Exact given the prefix. No estimate here takes
    into account that a token changes later states.
    """
    p, q = (all_logprobs, ref_all_logprobs) if direction == "reverse" else (ref_all_logprobs, all_logprobs)
    return (p.exp() * (p - q)).sum(dim=-1)


SAMPLED = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3, "k3+": kl_k3_plus}


def kl_loss(hparams, logprobs, ref_logprobs, full_kl, token_log_ratio, mask: Tensor) -> Tensor:
    """The KL term of the loss, per token (B, T), with gradient; 0 on padding.

    kl_importance_weighted multiplies by the ratio of new to old policy, with gradient through the ratio. Tokens come
    from the old policy, so that the gradient is the gradient of the reverse KL only with this factor
    (arXiv:2512.02556).
    """
    if hparams.kl_estimator == "full":
        if full_kl is None:
            raise ValueError("kl_estimator full needs the KL over the whole vocabulary, got None")
        kl = torch.where(mask, full_kl, torch.zeros_like(full_kl))
    else:
        if ref_logprobs is None:
            raise ValueError(
                f"kl_estimator {hparams.kl_estimator} needs a reference, got ref_logprobs None although kl_coef is "
                f"{hparams.kl_coef}"
            )
        kl = SAMPLED[hparams.kl_estimator](logprobs, ref_logprobs.detach(), mask)
    return kl * token_log_ratio.exp() if hparams.kl_importance_weighted else kl


def adapt_coefficient(kl_coef: float, sequence_kl: float, target: float, responses: int, horizon: int) -> float:
    """kl_coef after a rollout batch: proportional control, the error clipped to +-0.2 (arXiv:1909.08593, section 2.2).

    sequence_kl and target: sum of k1 over a response, mean over responses, in nats.
    """
    error = min(max(sequence_kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * responses / horizon)
