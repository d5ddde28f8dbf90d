"""CISPO: REINFORCE weighted by a truncated importance ratio that carries no gradient; no token is silenced.

    J = 1 / sum_i T_i  sum_it sg(min(rho_it, is_max)) A_i log pi(y_it)

Source: MiniMax 2025 (MiniMax-M1), arXiv:2506.13585, section 3.1. PPO's clip takes the gradient away from the tokens
whose probability moved most. They are often rare tokens at which a chain of thought changes direction. CISPO keeps
their gradient.

Frameworks differ: is_max is the bound itself, like TRL's epsilon_high (5.0 is the value of ScaleRL). In verl the bound
is 1 plus the setting. The value of the loss has no meaning. With a negative advantage nothing stops log pi from
falling, so watch entropy and KL.
"""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from algos.pieces.algorithm import Algorithm
from algos.pieces.estimator import Estimator, needs_ratio, needs_token_ratio
from algos.pieces.settings import settings
from algos.pieces.types import Shares


@settings
class CISPOConfig(Estimator):
    baseline = "group_mean"
    scale = "group_std"
    aggregation = "token-mean"
    is_max: Annotated[float, Field(ge=1)] = 5.0  # largest weight of a token, an absolute bound

    def __post_init__(self):
        super().__post_init__()
        needs_ratio(self)
        needs_token_ratio(self, "CISPO weighs each token by its own ratio")


def truncated_objective(
    log_ratio: Tensor, logprobs: Tensor, advantages: Tensor, mask: Tensor, hparams: CISPOConfig
) -> tuple[Tensor, Shares]:
    """sg(min(ratio, is_max)) A log pi: (B, T)."""
    ratio = log_ratio.detach().exp()
    above = ratio > hparams.is_max
    shares = {
        "clip_fraction": above,
        "clip_fraction_low": above & (advantages < 0),
        "clip_fraction_high": above & (advantages > 0),
    }
    return ratio.clamp(max=hparams.is_max) * advantages * logprobs, shares


ALGORITHM = Algorithm(
    CISPOConfig(),
    truncated_objective,
    lambda hparams: f"sg(min(rho, {hparams.is_max:g})) A log pi",
    "REINFORCE with a truncated ratio as weight: no token loses its gradient",
    "arXiv:2506.13585, section 3.1",
    relative="reinforce_group",
)
