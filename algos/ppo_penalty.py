"""PPO with a KL penalty instead of a clip, its coefficient doubled and halved to keep KL(old || new) near a target.

    J = 1 / sum_i T_i  sum_it  rho_it A_it - penalty_coef KL(pi_old || pi)

Source: Schulman et al. 2017, arXiv:1707.06347, section 4. Tokens come from the old policy, so rho - 1 - log rho
estimates KL(old || new) without bias, in value and in gradient. This is not the KL to the *reference*. The paper's
targets of 0.003 to 0.03 are for continuous control. A token of a language model moves less in one update.
"""

from dataclasses import replace

import torch
from pydantic import PositiveFloat
from torch import Tensor

from algos.pieces.algorithm import Algorithm, adapt
from algos.pieces.critic import WithCritic
from algos.pieces.estimator import needs_ratio
from algos.pieces.settings import settings
from algos.pieces.types import Shares


@settings
class PPOPenaltyConfig(WithCritic):
    kl_in = "reward"
    kl_estimator = "k1"
    penalty_coef: PositiveFloat = 1.0  # at the start
    penalty_target: PositiveFloat = 0.001  # KL(old || new) per token, in nats, after a rollout batch's updates

    def __post_init__(self):
        super().__post_init__()
        needs_ratio(self)


def penalized_objective(
    log_ratio: Tensor, logprobs: Tensor, advantages: Tensor, mask: Tensor, hparams: PPOPenaltyConfig
) -> tuple[Tensor, Shares]:
    """ratio A - penalty_coef (ratio - 1 - log ratio): (B, T)."""
    return log_ratio.exp() * advantages - hparams.penalty_coef * (torch.expm1(log_ratio) - log_ratio), {}


def adapt_penalty(hparams: PPOPenaltyConfig, metrics: dict[str, float], responses: int) -> PPOPenaltyConfig:
    """Halve penalty_coef below target / 1.5, double it above 1.5 target."""
    hparams, kl = adapt(hparams, metrics, responses), metrics["kl_after_update"]
    if kl < hparams.penalty_target / 1.5:
        return replace(hparams, penalty_coef=hparams.penalty_coef / 2)
    if kl > hparams.penalty_target * 1.5:
        return replace(hparams, penalty_coef=hparams.penalty_coef * 2)
    return hparams


ALGORITHM = Algorithm(
    PPOPenaltyConfig(),
    penalized_objective,
    lambda hparams: f"rho A - {hparams.penalty_coef:g} (rho - 1 - log rho)",
    "PPO with an adaptive KL penalty to the old policy instead of a clip",
    "arXiv:1707.06347, section 4",
    relative="ppo",
    adapt=adapt_penalty,
    measures_kl_after_update=True,
)
