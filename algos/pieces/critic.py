"""The critic's settings and its loss. Its advantages are algos.pieces.advantages.gae."""

from dataclasses import dataclass

import torch
from torch import Tensor

from algos.pieces.estimator import Estimator, at_least
from algos.pieces.masked import masked_sum

CRITICS = ("separate", "shared")
HEADS = ("linear", "mlp")
INITS = ("policy", "reward_model", "fresh")


@dataclass(frozen=True)
class WithCritic(Estimator):
    baseline: str = "critic"
    scale: str = "whiten"  # over the valid tokens of the rollout batch, as in TRL and verl
    aggregation: str = "token-mean"
    gamma: float = 1.0  # discount per token
    gae_lambda: float = 0.95  # 0: one-step temporal difference, 1: Monte Carlo return minus the value
    gae_lambda_critic: float | None = None  # of the critic's targets alone (VC-PPO, arXiv:2503.01491); null: gae_lambda
    whiten_rewards: bool = False  # token rewards over the batch, their mean kept
    value_clip: float | None = 0.2  # how far a value may move from its rollout-time self, in reward units; null: off
    value_coef: float = 1.0  # scales the critic's loss; almost without effect for a separate critic under Adam
    critic: str = "separate"  # separate: a network of its own; shared: a head on the policy's backbone
    critic_head: str = "linear"  # linear, or mlp with one hidden layer
    critic_detach: bool = False  # shared: no gradient from the value loss into the backbone
    critic_init: str = (
        "policy"  # separate: the policy's backbone (or --critic's), the reward_model and its head, or fresh
    )
    critic_layers: int | None = None  # separate: the first so many layers of its checkpoint; null: all
    value_warmup: int = 0  # rollout batches at the start that train the critic alone

    def __post_init__(self):
        super().__post_init__()
        for name, allowed in (("critic", CRITICS), ("critic_head", HEADS), ("critic_init", INITS)):
            if getattr(self, name) not in allowed:
                hint = ": GAE needs a critic" if name == "critic" else ""
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}{hint}")
        at_least(self, 0, "value_coef", "value_warmup")
        for name in ("gamma", "gae_lambda", "gae_lambda_critic"):
            if getattr(self, name) is not None and not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in 0..1, got {getattr(self, name)}")
        if self.value_clip is not None and self.value_clip <= 0:
            raise ValueError(f"value_clip must be above 0, or null for none, got {self.value_clip}")
        if self.critic_detach and self.critic != "shared":
            raise ValueError("critic_detach is for critic shared: a separate critic has no gradient into the policy")
        if self.critic == "shared" and self.critic_init != "policy":
            raise ValueError(f"critic shared stands on the policy's backbone, got critic_init {self.critic_init}")
        if self.critic_layers is not None and self.critic == "shared":
            raise ValueError(
                "critic shared stands on the policy's backbone, whole: critic_layers must be null, "
                f"got {self.critic_layers}"
            )
        if self.critic_layers is not None and self.critic_init == "reward_model":
            raise ValueError(
                "critic_init reward_model says what the critic starts from: critic_layers must be null, "
                f"got {self.critic_layers}"
            )
        if self.critic_layers is not None and self.critic_layers < 1:
            raise ValueError(f"critic_layers must be at least 1, or null for all, got {self.critic_layers}")


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, response_mask: Tensor, config, totals):
    """Critic loss of one micro-batch, and metrics that add up; all (B, T), only `values` with grad.

    Half the mean over tokens of max((V - R)^2, (V_clipped - R)^2), V_clipped within value_clip of the rollout-time
    value; the one half is that of TRL and verl.
    """
    zeros = torch.zeros_like(values)  # select before squaring: NaN in padding must not reach the gradient
    values, old_values, returns = (
        torch.where(response_mask, x, zeros) for x in (values, old_values.detach(), returns.detach())
    )
    error = (values - returns) ** 2
    metrics = {}
    if config.value_clip is not None:
        moved = (values - old_values).clamp(-config.value_clip, config.value_clip)
        clipped_error = (old_values + moved - returns) ** 2
        metrics["value_clip_fraction"] = (clipped_error > error).sum() / totals.response_tokens
        error = torch.maximum(error, clipped_error)
    mean = 0.5 * masked_sum(error, response_mask) / totals.response_tokens
    return config.value_coef * mean, {"value_loss": mean.detach(), **metrics}


@torch.no_grad()
def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(R - V) / Var(R) over valid tokens; NaN where the returns do not vary. Below 0 the critic does harm."""
    values, returns = values[mask], returns[mask]
    variance = returns.var()
    return float(1 - (returns - values).var() / variance) if variance > 0 else float("nan")
