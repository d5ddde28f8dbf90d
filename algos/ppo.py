"""PPO: the clipped objective with one importance ratio per token, advantages from a critic by GAE.

Source: Schulman et al. 2017, arXiv:1707.06347 (clipped objective), and 2016, arXiv:1506.02438 (GAE); for language
models Stiennon et al. 2020, arXiv:2009.01325, and Huang et al. 2024, arXiv:2403.17031.

Where codebases disagree:
- the reward stands on the last *valid* token of a response, never in the last column of the padded batch, and a
  response that ran into the length limit counts as ended there;
- the KL penalty, where there is one, is in the reward: -kl_coef * (old_logprobs - ref_logprobs), k1, computed once;
- advantages are whitened over the valid tokens of the whole rollout batch, sample variance (TRL, verl);
- the loss is the mean over tokens; the value loss is half the mean of the larger of two squared errors (TRL, verl).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from algos.algorithm import Algorithm
from algos.diagnostics import clip_metrics, ratio_metrics
from algos.kl import kl_k1, log_ratio
from algos.masked import masked_sum, masked_whiten


@dataclass(frozen=True)
class PPOConfig:
    clip_low: float = 0.2  # ratios below 1 - clip_low are not pushed further down
    clip_high: float = 0.2  # ratios above 1 + clip_high are not pushed further up
    gamma: float = 1.0  # discount per token
    gae_lambda: float = 0.95  # 0: one-step temporal difference, 1: Monte Carlo return minus the value
    whiten_advantages: bool = True  # over the valid tokens of the rollout batch
    value_clip: float | None = 0.2  # how far a value may move from its rollout-time self, in reward units; null: off
    value_coef: float = 1.0  # scales the critic's loss; with its own Adam almost without effect
    kl_coef: float = 0.0  # weight of the per-token k1 penalty in the reward; 0: no reference

    def __post_init__(self):
        for name in ("clip_low", "clip_high", "value_coef", "kl_coef"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in 0..1, got {getattr(self, name)}")
        if self.value_clip is not None and self.value_clip <= 0:
            raise ValueError(f"value_clip must be above 0, or null for none, got {self.value_clip}")


def estimator(config: PPOConfig) -> dict[str, object]:
    """The estimator that these settings resolve to, in words, for the record."""
    return {
        "advantage_baseline": f"critic, GAE(gamma={config.gamma:g}, lambda={config.gae_lambda:g})",
        "advantage_divisor": "standard deviation over the batch's tokens" if config.whiten_advantages else "none",
        "ratio_level": "token",
        "clip_low": config.clip_low,
        "clip_high": config.clip_high,
        "kl_place": "reward" if config.kl_coef else "none",
        "kl_estimator": "k1" if config.kl_coef else "none",
        "kl_coef": config.kl_coef,
        "loss_aggregation": "mean over the tokens of the optimiser step",
    }


def token_rewards(
    rewards: Tensor, old_logprobs: Tensor, ref_logprobs: Tensor | None, response_mask: Tensor, kl_coef: float = 0.0
) -> Tensor:
    """Per-token rewards (B, T): the KL penalty on every valid token, the response's reward (B,) on its last one."""
    shaped = torch.zeros_like(old_logprobs)
    if kl_coef:
        shaped = -kl_coef * kl_k1(old_logprobs, ref_logprobs, response_mask)
    rows = response_mask.any(dim=1).nonzero().squeeze(1)  # an empty response has nowhere to put a reward
    columns = torch.arange(response_mask.shape[1], device=response_mask.device)
    last = torch.where(response_mask, columns, -1).amax(dim=1)[rows]
    shaped[rows, last] += rewards[rows].to(shaped.dtype)
    return shaped


def gae(token_rewards: Tensor, values: Tensor, response_mask: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimates, (B, T) each: values[:, t] is that of the state before token t.

    delta_t = r_t + gamma V_{t+1} - V_t and A_t = delta_t + gamma lam A_{t+1}, where t+1 is the next *valid* token and
    both V and A are 0 after the last one. Masked positions are passed over, whatever they hold; they get 0.
    """
    advantages = torch.zeros_like(values)
    next_value = torch.zeros_like(values[:, 0])
    next_advantage = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        valid = response_mask[:, t]
        delta = token_rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = torch.where(valid, delta + gamma * lam * next_advantage, next_advantage)
        next_value = torch.where(valid, values[:, t], next_value)
        advantages[:, t] = torch.where(valid, next_advantage, advantages[:, t])
    return advantages


def _raw_advantages(batch, config: PPOConfig) -> Tensor:
    shaped = token_rewards(batch.rewards, batch.old_logprobs, batch.ref_logprobs, batch.response_mask, config.kl_coef)
    return gae(shaped, batch.values, batch.response_mask, config.gamma, config.gae_lambda)


def advantages(batch, config: PPOConfig) -> Tensor:
    """GAE of a rollout batch with the critic's values at rollout time: -> (B, T), no grad."""
    raw = _raw_advantages(batch, config)
    return masked_whiten(raw, batch.response_mask) if config.whiten_advantages else raw


def returns(batch, config: PPOConfig) -> Tensor:
    """The critic's targets, A + V with the advantages before whitening: -> (B, T), 0 on padding, no grad."""
    targets = _raw_advantages(batch, config) + batch.values
    return torch.where(batch.response_mask, targets, torch.zeros_like(targets))


def loss(logprobs, old_logprobs, advantages, response_mask, config, totals, ref_logprobs=None):
    """Policy loss of one micro-batch, and metrics that add up over micro-batches.

    logprobs, old_logprobs  (B, T)  log-probability of each sampled token, in nats; old: no grad
    advantages              (B, T)  one per token, no grad
    response_mask           (B, T)  bool; what lies under False has no effect, not even NaN
    totals                  counts over the whole optimiser step, so that cutting the step into micro-batches leaves
                            the gradient unchanged
    ref_logprobs            not used: PPO's KL penalty is in the reward
    Raises ValueError if advantages is not (B, T).
    """
    if advantages.shape != logprobs.shape:
        raise ValueError(f"advantages must be (B, T) = {tuple(logprobs.shape)}, got {tuple(advantages.shape)}")
    log_ratios = log_ratio(logprobs, old_logprobs, response_mask)  # (B, T)
    advantages = torch.where(response_mask, advantages, torch.zeros_like(advantages))
    ratio = log_ratios.exp()
    clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    objective = torch.minimum(ratio * advantages, clipped * advantages)  # (B, T)
    metrics = {
        **ratio_metrics(log_ratios.detach(), response_mask, totals),
        **clip_metrics(
            ratio.detach(), advantages, config.clip_low, config.clip_high, response_mask, totals.response_tokens
        ),
    }
    return -masked_sum(objective, response_mask) / totals.response_tokens, metrics


def value_loss(values, old_values, returns, response_mask, config, totals):
    """Critic loss of one micro-batch, and metrics that add up; all (B, T), only `values` with grad.

    Half the mean over tokens of max((V - R)^2, (V_clipped - R)^2), V_clipped within value_clip of the
    rollout-time value.
    """
    zeros = torch.zeros_like(values)  # select before squaring: NaN in padding must not reach the gradient
    values, old_values, returns = (torch.where(response_mask, x, zeros) for x in (values, old_values, returns))
    error = (values - returns) ** 2
    metrics = {}
    if config.value_clip is not None:
        moved = (values - old_values).clamp(-config.value_clip, config.value_clip)
        clipped_error = (old_values + moved - returns) ** 2
        metrics["value_clip_fraction"] = (clipped_error > error).sum() / totals.response_tokens
        error = torch.maximum(error, clipped_error)
    mean = 0.5 * masked_sum(error, response_mask) / totals.response_tokens
    return config.value_coef * mean, {"value_loss": mean.detach(), **metrics}


ALGORITHM = Algorithm(PPOConfig, advantages, loss, estimator, returns, value_loss)
