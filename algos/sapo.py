"""SAPO: a soft gate instead of a clip.

    J = 1 / B  sum_i  1 / T_i  sum_t  (4 / tau) sigmoid(tau (rho_it - 1)) A_i,   tau = tau_pos if A_i > 0 else tau_neg

Source: Gao et al. 2025, arXiv:2511.20347, section 3. A token's gradient is rho A times a gate 4 q (1 - q), q =
sigmoid(tau (rho - 1)). The gate is 1 on-policy and falls smoothly on both sides. tau_neg is larger than tau_pos,
because pushing one token down raises many tokens that were not sampled. The objective differs from PPO's by an offset
of 2 / tau.
"""

import torch
from pydantic import PositiveFloat
from torch import Tensor

from algos.pieces.algorithm import Algorithm
from algos.pieces.estimator import Estimator, needs_ratio
from algos.pieces.settings import settings
from algos.pieces.types import Shares


@settings
class SAPOConfig(Estimator):
    baseline = "group_mean"
    scale = "group_std"
    tau_pos: PositiveFloat = 1.0  # temperature of the gate for positive advantages
    tau_neg: PositiveFloat = 1.05  # and for negative ones

    def __post_init__(self):
        super().__post_init__()
        needs_ratio(self)


def gated_objective(
    log_ratio: Tensor, logprobs: Tensor, advantages: Tensor, mask: Tensor, hparams: SAPOConfig
) -> tuple[Tensor, Shares]:
    """(4 / tau) sigmoid(tau (ratio - 1)) A: (B, T)."""
    tau = torch.where(advantages > 0, hparams.tau_pos, hparams.tau_neg).to(log_ratio.dtype)
    gate = torch.sigmoid(tau * (log_ratio.exp() - 1))
    weight = (4 * gate * (1 - gate)).detach()
    return 4 / tau * gate * advantages, {"gate_weight": weight, "gate_below_half": weight < 0.5}


ALGORITHM = Algorithm(
    SAPOConfig(),
    gated_objective,
    lambda hparams: (
        f"(4 / tau) sigmoid(tau (rho - 1)) A,  tau = {hparams.tau_pos:g} if A > 0, else {hparams.tau_neg:g}"
    ),
    "a smooth gate on the token ratio instead of a clip",
    "arXiv:2511.20347, section 3",
    relative="grpo",
)
