"""DPPO: tokens are silenced by how far their probability has moved, not by how far their ratio has.

    J = 1 / sum_i T_i  sum_it [not (A_i (rho_it - 1) > 0 and D_it > limit)] rho_it A_i
    D_it = |pi(y_it) - pi_old(y_it)|,   or the KL between (pi_old, 1 - pi_old) and (pi, 1 - pi) of the token

Source: Qi et al. 2026, arXiv:2602.04879v3, equations 12 to 14; limits and second entry as in TRL's DPPO (0423cdb);
compared with verl 018f23b (dppo_tv, dppo_kl). PPO's clip is hard on rare tokens, whose ratio jumps while hardly any
probability moves, and soft on likely ones. D is the total variation (or KL) between two distributions on "this token"
and "any other", a lower bound of that over the vocabulary. Like PPO's clip, the mask leaves the tokens alone that move
back.

The paper's denominator is the sampler's probability, not one that the trainer computes again, and its advantage is the
reward minus the group's mean. verl and TRL also cut the ratio at 20. prime-rl adds a penalty on the squared log-ratio,
which is drift_coef here.
"""

from dataclasses import replace
from typing import Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from algos.pieces.algorithm import Algorithm
from algos.pieces.estimator import Estimator, needs_token_ratio
from algos.pieces.settings import settings
from algos.pieces.types import Shares

TINY = 1.0e-8  # keeps the logarithm of 1 - pi finite


@settings
class DPPOConfig(Estimator):
    baseline = "group_mean"
    scale = "none"
    ratio = "token"
    aggregation = "token-mean"
    divergence: Literal["tv", "kl"] = "tv"
    limit_low: NonNegativeFloat = 0.15  # of the divergence, for tokens that A < 0 pushes down
    limit_high: NonNegativeFloat = 0.15  # and for those that A > 0 pushes up
    drift_coef: NonNegativeFloat = 0.0  # weight of a penalty on (log rho)^2, for all tokens

    def __post_init__(self):
        super().__post_init__()
        needs_token_ratio(self, "DPPO compares the probabilities of tokens")


def divergence(new: Tensor, old: Tensor, kind: str) -> Tensor:
    """Between the distributions (old, 1 - old) and (new, 1 - new); new and old are probabilities of tokens."""
    if kind == "tv":
        return (new - old).abs()
    return old * (old / new).log() + (1 - old) * ((1 - old + TINY) / (1 - new + TINY)).log()


def bounded_objective(
    log_ratio: Tensor, logprobs: Tensor, advantages: Tensor, mask: Tensor, hparams: DPPOConfig
) -> tuple[Tensor, Shares]:
    """ratio A where the token's probability is near the old one or moves back, minus the penalty: (B, T)."""
    new, old = logprobs.detach().exp(), (logprobs - log_ratio).detach().exp()
    moved = divergence(new, old, hparams.divergence)
    high = (moved > hparams.limit_high) & (advantages > 0) & (new > old)
    low = (moved > hparams.limit_low) & (advantages < 0) & (new < old)
    objective = torch.where(high | low, torch.zeros_like(log_ratio), log_ratio.exp() * advantages)
    shares = {"clip_fraction": high | low, "clip_fraction_low": low, "clip_fraction_high": high}
    return objective - hparams.drift_coef * log_ratio**2, shares


def term(hparams: DPPOConfig) -> str:
    distance = "|pi - pi_old|" if hparams.divergence == "tv" else "KL((pi_old, 1 - pi_old) || (pi, 1 - pi))"
    limits = f"{hparams.limit_high:g} (A > 0), {hparams.limit_low:g} (A < 0)"
    bounded = f"rho A, or 0 where A (rho - 1) > 0 and {distance} > {limits}"
    return f"({bounded}) - {hparams.drift_coef:g} (log rho)^2" if hparams.drift_coef else bounded


ALGORITHM = Algorithm(
    DPPOConfig(),
    bounded_objective,
    term,
    "a limit on how far a token's probability moves, instead of a clip of its ratio",
    "arXiv:2602.04879v3, section 4.3; limits as in TRL 0423cdb",
    relative="grpo",
)
KL = replace(
    ALGORITHM,
    defaults=DPPOConfig(divergence="kl", limit_low=0.05, limit_high=0.05),
    idea="DPPO with the KL of a token's probability instead of its absolute change",
    relative="dppo",
)
