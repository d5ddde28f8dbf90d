"""The critic's hyperparameters and its loss. Advantages from a critic: algos.pieces.advantages.gae."""

from typing import Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from algos.pieces.estimator import Estimator
from algos.pieces.masked import masked_sum
from algos.pieces.settings import Share, settings
from algos.pieces.types import Totals


@settings
class WithCritic(Estimator):
    baseline = "critic"
    scale = "whiten"  # over the valid tokens of the rollout batch, as in TRL and verl
    aggregation = "token-mean"
    gamma: Share = 1.0  # discount per token
    gae_lambda: Share = 0.95  # 0: one-step temporal difference, 1: Monte Carlo return minus the value
    gae_lambda_critic: Share | None = None  # of the critic's targets (VC-PPO, arXiv:2503.01491); null: gae_lambda
    whiten_rewards: bool = False  # token rewards over the batch, their mean kept
    value_clip: PositiveFloat | None = 0.2  # how far a value may move from its rollout-time self, in reward units
    value_coef: NonNegativeFloat = 1.0  # scales the critic's loss; almost without effect for a separate one under Adam
    critic: Literal["separate", "shared"] = "separate"  # a network of its own, or a head on the policy's backbone
    critic_head: Literal["linear", "mlp"] = "linear"  # mlp: with one hidden layer
    critic_detach: bool = False  # shared: no gradient from the value loss into the backbone
    # separate: the backbone of the policy (or --critic's), of the reward_model with its head, or fresh
    critic_init: Literal["policy", "reward_model", "fresh"] = "policy"
    critic_layers: PositiveInt | None = None  # separate: the first so many layers of where it starts from; null: all
    value_warmup: NonNegativeInt = 0  # rollout batches at the start that train the critic alone

    def __post_init__(self):
        super().__post_init__()
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


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, response_mask: Tensor, hparams: WithCritic, totals: Totals
) -> tuple[Tensor, dict[str, Tensor]]:
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
    if hparams.value_clip is not None:
        moved = (values - old_values).clamp(-hparams.value_clip, hparams.value_clip)
        clipped_error = (old_values + moved - returns) ** 2
        metrics["value_clip_fraction"] = (clipped_error > error).sum() / totals.response_tokens
        error = torch.maximum(error, clipped_error)
    mean = 0.5 * masked_sum(error, response_mask) / totals.response_tokens
    return hparams.value_coef * mean, {"value_loss": mean.detach(), **metrics}


@torch.no_grad()
def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(R - V) / Var(R) over valid tokens; NaN where the returns do not vary. Below 0 the critic does harm."""
    values, returns = values[mask], returns[mask]
    variance = returns.var()
    return float(1 - (returns - values).var() / variance) if variance > 0 else float("nan")
