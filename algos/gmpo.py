"""GMPO: the geometric mean of a response's token ratios, each clipped before averaging.

    J = 1 / B  sum_i  A_i exp(1 / T_i  sum_t y_it),   y_it = the more pessimistic of log rho_it and its clip

Source: Zhao et al. 2025, arXiv:2507.20673, section 3. Differs from gspo.py in the order. GSPO clips the mean, so that a
response is kept or dropped as a whole. GMPO clips each token before the mean, so that only outlying tokens lose their
influence. The range (e^-0.4, e^0.4) is wider than GRPO's.
"""

import torch
from pydantic import PositiveFloat
from torch import Tensor

from algos.pieces.algorithm import Algorithm
from algos.pieces.estimator import Estimator
from algos.pieces.masked import masked_mean
from algos.pieces.settings import settings
from algos.pieces.types import Shares


@settings
class GMPOConfig(Estimator):
    baseline = "group_mean"
    scale = "group_std"
    ratio = "token"
    clip_log: PositiveFloat = 0.4  # range of a token's log-ratio

    def __post_init__(self):
        super().__post_init__()
        for name, only in (("ratio", "token"), ("aggregation", "seq-mean-token-mean")):
            if getattr(self, name) != only:
                raise ValueError(f"GMPO averages token ratios: {name} must be {only}, got {getattr(self, name)}")

    @property
    def per_response(self) -> str:
        return "GMPO's mean"


def geometric_objective(
    log_ratio: Tensor, logprobs: Tensor, advantages: Tensor, mask: Tensor, hparams: GMPOConfig
) -> tuple[Tensor, Shares]:
    """A exp(mean of the pessimistically clipped log-ratios): (B, 1)."""
    sign = advantages.sign()
    clipped = log_ratio.clamp(-hparams.clip_log, hparams.clip_log)
    y = sign * torch.minimum(sign * log_ratio, sign * clipped)  # (B, T)
    high = (log_ratio > hparams.clip_log) & (advantages > 0)
    low = (log_ratio < -hparams.clip_log) & (advantages < 0)
    shares = {"clip_fraction": high | low, "clip_fraction_low": low, "clip_fraction_high": high}
    return advantages * masked_mean(y, mask, dim=1, keepdim=True).exp(), shares


ALGORITHM = Algorithm(
    GMPOConfig(),
    geometric_objective,
    lambda hparams: (
        f"A exp(mean_t y),  y = min(log rho, clip(log rho, -{hparams.clip_log:g}, {hparams.clip_log:g})) if A > 0, "
        "else the max of the two"
    ),
    "geometric mean of token ratios, each clipped before averaging",
    "arXiv:2507.20673, section 3",
    relative="gspo",
)
