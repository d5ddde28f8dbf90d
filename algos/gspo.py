"""GSPO: the clipped objective with one importance ratio per response.

Source: Zheng et al. 2025, arXiv:2507.18071, section 4.1; clip range from section 5.1. Differs from grpo.py in one
place: the ratio is the geometric mean over a response's tokens, so clipping keeps or drops whole responses. Advantages
are grpo.advantages.

The paper's clip range belongs to its models and learning rates: a length-normalised ratio stays near 1, and how near
depends on how far an optimiser step moves the policy. Watch clip_fraction before trusting a comparison. Several
frameworks ship GSPO with GRPO's 0.2, with which it practically never clips.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from algos.algorithm import Algorithm
from algos.diagnostics import clip_metrics, ratio_metrics
from algos.grpo import advantages
from algos.kl import log_ratio
from algos.masked import masked_mean, masked_sum


@dataclass(frozen=True)
class GSPOConfig:
    clip_low: float = 3.0e-4  # far below PPO's 0.2: averaging over tokens keeps the ratio near 1
    clip_high: float = 4.0e-4
    std_epsilon: float = 1.0e-6  # added to the group's standard deviation

    def __post_init__(self):
        for name in ("clip_low", "clip_high", "std_epsilon"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")


def estimator(config: GSPOConfig) -> dict[str, object]:
    """The estimator that these settings resolve to, in words, for the record."""
    return {
        "advantage_baseline": "mean of the group, own response included",
        "advantage_divisor": f"sample standard deviation of the group + {config.std_epsilon:g}",
        "ratio_level": "response (geometric mean over its tokens)",
        "clip_low": config.clip_low,
        "clip_high": config.clip_high,
        "kl_place": "none",
        "kl_estimator": "none",
        "kl_coef": 0.0,
        "loss_aggregation": "mean over responses",
    }


def sequence_ratio(logprobs: Tensor, old_logprobs: Tensor, response_mask: Tensor) -> Tensor:
    """exp of the mean log-ratio over the response's tokens: three (B, T) -> (B, 1)."""
    return masked_mean(log_ratio(logprobs, old_logprobs, response_mask), response_mask, dim=1, keepdim=True).exp()


def loss(logprobs, old_logprobs, advantages, response_mask, config, totals, ref_logprobs=None):
    """Policy loss of one micro-batch, and metrics that add up over micro-batches.

    logprobs, old_logprobs  (B, T)  log-probability of each sampled token, in nats; old: no grad
    advantages              (B, 1)  one per response, no grad
    response_mask           (B, T)  bool; what lies under False has no effect, not even NaN
    totals                  counts over the whole optimiser step, so that cutting the step into micro-batches leaves
                            the gradient unchanged
    ref_logprobs            not used: GSPO has no KL term
    Raises ValueError if advantages is (B,): it would silently broadcast to (B, B).
    """
    if advantages.shape != (len(logprobs), 1):
        raise ValueError(f"advantages must be (B, 1) = ({len(logprobs)}, 1), got {tuple(advantages.shape)}")
    ratio = sequence_ratio(logprobs, old_logprobs, response_mask)  # (B, 1)
    clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    objective = torch.minimum(ratio * advantages, clipped * advantages)  # (B, 1)
    not_empty = response_mask.any(dim=1, keepdim=True)
    metrics = {
        **ratio_metrics(log_ratio(logprobs, old_logprobs, response_mask).detach(), response_mask, totals),
        **clip_metrics(ratio.detach(), advantages, config.clip_low, config.clip_high, not_empty, totals.responses),
        "sequence_ratio_mean": masked_sum(ratio.detach(), not_empty) / totals.responses,
        "sequence_ratio_min": torch.where(not_empty, ratio.detach(), 1.0).min(),
        "sequence_ratio_max": torch.where(not_empty, ratio.detach(), 1.0).max(),
    }
    return -masked_sum(objective, not_empty) / totals.responses, metrics


ALGORITHM = Algorithm(GSPOConfig, advantages, loss, estimator, min_group=2)
