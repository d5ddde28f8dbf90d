"""VESPO: REINFORCE with a smooth weight per response, made of the ratio of whole-response probabilities.

    J = 1 / sum_i T_i  sum_it sg(phi(W_i)) A_i log pi(y_it)
    phi(W) = W^power exp(decay (1 - W)),   W_i = pi(y_i) / pi_old(y_i) = prod_t rho_it

Source: Shen et al. 2026, arXiv:2602.10693v3, equation 20; power and decay from section 4.1. A test holds loss and
gradient to those of TRL 1.12 (loss_type vespo). W is not normalized by length, so that it is the true importance ratio.
phi keeps its variance bounded: phi(1) = 1, W far below 1 is damped by the power, W far above 1 by the decay. Wrong
responses have the larger power, because the policy dislikes them already where W is below 1.

Where sources disagree: the paper's advantage is the reward minus the group's mean; TRL divides by the group's standard
deviation, too, unless told otherwise. TRL multiplies W by the correction for its sampler; here a correction is a weight
of its own.
"""

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from algos.pieces.algorithm import Algorithm
from algos.pieces.estimator import Estimator, needs_token_ratio
from algos.pieces.ratios import whole_response
from algos.pieces.settings import settings
from algos.pieces.types import Shares


@settings
class VESPOConfig(Estimator):
    baseline = "group_mean"
    scale = "none"
    ratio = "token"
    aggregation = "token-mean"
    power_pos: NonNegativeFloat = 2.0  # of W, for advantages of at least 0
    decay_pos: NonNegativeFloat = 3.0
    power_neg: NonNegativeFloat = 3.0  # and for negative ones
    decay_neg: NonNegativeFloat = 2.0

    def __post_init__(self):
        super().__post_init__()
        needs_token_ratio(self, "VESPO multiplies the ratios of a response's tokens")


def reshaped_objective(
    log_ratio: Tensor, logprobs: Tensor, advantages: Tensor, mask: Tensor, hparams: VESPOConfig
) -> tuple[Tensor, Shares]:
    """sg(phi(W)) A log pi: (B, T)."""
    total = whole_response(log_ratio.detach(), mask)  # (B, 1)
    power = torch.where(advantages >= 0, hparams.power_pos, hparams.power_neg).to(total.dtype)
    decay = torch.where(advantages >= 0, hparams.decay_pos, hparams.decay_neg).to(total.dtype)
    weight = (power * total - decay * torch.expm1(total)).exp()
    return weight * advantages * logprobs, {"response_weight": weight, "response_weight_below_half": weight < 0.5}


ALGORITHM = Algorithm(
    VESPOConfig(),
    reshaped_objective,
    lambda hparams: (
        "sg(W^p exp(d (1 - W))) A log pi,  W = prod_t rho,  "
        f"(p, d) = ({hparams.power_pos:g}, {hparams.decay_pos:g}) if A >= 0, "
        f"else ({hparams.power_neg:g}, {hparams.decay_neg:g})"
    ),
    "a smooth weight on the ratio of whole responses, without length normalization and clip",
    "arXiv:2602.10693v3, section 3.5; TRL 1.12, vespo",
    relative="cispo",
)
