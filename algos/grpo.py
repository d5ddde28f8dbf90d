"""GRPO: the clipped objective with one importance ratio per token, advantages from groups instead of a critic.

Source: Shao et al. 2024 (DeepSeekMath), arXiv:2402.03300, section 4.1. Differs from ppo.py in two places:
the advantage of a response is its reward normalised within the group of responses to the same prompt, one number for
all its tokens; and the loss averages over a response's tokens first, then over responses.

Where codebases disagree:
- standard deviation: the sample one (divisor G - 1), as in TRL, verl and oat; the paper does not say;
- aggregation: the paper's mean over responses of the mean over tokens; TRL's default is DAPO's token mean;
- clip_high: the paper's symmetric 0.2 is the default; DAPO (arXiv:2503.14476) raises it to 0.28;
- kl_coef: 0, as in TRL and DAPO; the paper adds 0.04 times the k3 estimate to the loss.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from algos.algorithm import Algorithm
from algos.diagnostics import clip_metrics, ratio_metrics
from algos.kl import kl_k3, log_ratio
from algos.masked import masked_mean, masked_sum


@dataclass(frozen=True)
class GRPOConfig:
    clip_low: float = 0.2  # ratios below 1 - clip_low are not pushed further down
    clip_high: float = 0.2  # ratios above 1 + clip_high are not pushed further up
    std_epsilon: float = 1.0e-6  # added to the group's standard deviation
    kl_coef: float = 0.0  # weight of the k3 estimate of KL(policy || reference) in the loss; 0: no reference

    def __post_init__(self):
        for name in ("clip_low", "clip_high", "std_epsilon", "kl_coef"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")


def estimator(config: GRPOConfig) -> dict[str, object]:
    """The estimator that these settings resolve to, in words, for the record."""
    return {
        "advantage_baseline": "mean of the group, own response included",
        "advantage_divisor": f"sample standard deviation of the group + {config.std_epsilon:g}",
        "ratio_level": "token",
        "clip_low": config.clip_low,
        "clip_high": config.clip_high,
        "kl_place": "loss" if config.kl_coef else "none",
        "kl_estimator": "k3" if config.kl_coef else "none",
        "kl_coef": config.kl_coef,
        "loss_aggregation": "mean over responses of the mean over tokens",
    }


def group_advantages(rewards: Tensor, std_epsilon: float = 1.0e-6) -> Tensor:
    """(reward - mean) / (std + std_epsilon) within each group; (P, G) -> (P, G).

    A group of equal rewards gets exactly 0. Raises ValueError for groups of one: they have no spread.
    """
    if rewards.dim() != 2 or rewards.shape[1] < 2:
        raise ValueError(f"rewards must be (P, G) with groups of at least 2 responses, got {tuple(rewards.shape)}")
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    equal = rewards.max(dim=1, keepdim=True).values == rewards.min(dim=1, keepdim=True).values
    advantages = centred / (rewards.std(dim=1, keepdim=True) + std_epsilon)
    return torch.where(equal, torch.zeros_like(advantages), advantages)  # the mean of equal numbers may round


def advantages(batch, config: GRPOConfig) -> Tensor:
    """Group advantages of a rollout batch, whose rows of one group are adjacent: -> (B, 1), no grad."""
    return group_advantages(batch.rewards.view(-1, batch.group_size), config.std_epsilon).view(-1, 1)


def loss(logprobs, old_logprobs, advantages, response_mask, config, totals, ref_logprobs=None):
    """Policy loss of one micro-batch, and metrics that add up over micro-batches.

    logprobs, old_logprobs  (B, T)  log-probability of each sampled token, in nats; old: no grad
    advantages              (B, 1)  one per response, no grad
    response_mask           (B, T)  bool; what lies under False has no effect, not even NaN
    totals                  counts over the whole optimiser step, so that cutting the step into micro-batches leaves
                            the gradient unchanged
    ref_logprobs            (B, T)  under the frozen reference, no grad; needed if config.kl_coef > 0
    Raises ValueError if advantages is (B,): it would silently broadcast to (B, B).
    """
    if advantages.shape != (len(logprobs), 1):
        raise ValueError(f"advantages must be (B, 1) = ({len(logprobs)}, 1), got {tuple(advantages.shape)}")
    log_ratios = log_ratio(logprobs, old_logprobs, response_mask)  # (B, T)
    ratio = log_ratios.exp()
    clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    objective = torch.minimum(ratio * advantages, clipped * advantages)  # (B, T)
    metrics = {
        **ratio_metrics(log_ratios.detach(), response_mask, totals),
        **clip_metrics(
            ratio.detach(), advantages, config.clip_low, config.clip_high, response_mask, totals.response_tokens
        ),
    }
    if config.kl_coef:
        kl = kl_k3(logprobs, ref_logprobs, response_mask)
        objective = objective - config.kl_coef * kl
        metrics["kl_loss_k3"] = masked_sum(kl.detach(), response_mask) / totals.response_tokens
    per_response = masked_mean(objective, response_mask, dim=1)  # (B,)
    return -per_response.sum() / totals.responses, metrics


ALGORITHM = Algorithm(GRPOConfig, advantages, loss, estimator, min_group=2)
