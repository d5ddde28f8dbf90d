"""PPO's clipped objective, and the settings of every algorithm that uses it, whatever its ratio and its advantages."""

from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor

from algos.pieces.estimator import Estimator, needs_ratio
from algos.pieces.settings import settings


@settings
class Clipped(Estimator):
    clip_low: NonNegativeFloat = 0.2  # ratios below 1 - clip_low are not pushed further down
    clip_high: NonNegativeFloat = 0.2  # ratios above 1 + clip_high are not pushed further up
    dual_clip: Annotated[float, Field(gt=1)] | None = None  # c: with A < 0 the loss is at most -c A (arXiv:1912.09729)
    ratio_cap: float | None = None  # ratios are cut at this before the minimum (two-sided clip, arXiv:2505.07291)

    def __post_init__(self):
        super().__post_init__()
        needs_ratio(self)
        if self.ratio_cap is not None and self.ratio_cap < 1 + self.clip_high:
            raise ValueError(
                f"ratio_cap must be at least 1 + clip_high = {1 + self.clip_high:g}, or null for none, "
                f"got {self.ratio_cap}"
            )


def clipped_objective(log_ratio: Tensor, logprobs: Tensor, advantages: Tensor, mask: Tensor, config: Clipped):
    """min(ratio A, clip(ratio) A): (B, T), or (B, 1) where the ratio is one per response; to be maximized.

    The minimum removes the incentive to leave the range, it does not bound the ratio: with A < 0 and a ratio above
    the range the gradient flows, and grows. Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7.
    """
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    capped = ratio if config.ratio_cap is None else ratio.clamp(max=config.ratio_cap)
    objective = torch.minimum(capped * advantages, clipped * advantages)
    silenced_high = (ratio > 1 + config.clip_high) & (advantages > 0)
    silenced_low = (ratio < 1 - config.clip_low) & (advantages < 0)
    shares = {
        "clip_fraction": silenced_high | silenced_low,
        "clip_fraction_low": silenced_low,
        "clip_fraction_high": silenced_high,
    }
    if config.dual_clip is not None:
        bounded = torch.where(advantages < 0, torch.maximum(objective, config.dual_clip * advantages), objective)
        shares["dual_clip_fraction"] = bounded > objective
        objective = bounded
    return objective, shares


def describe_clipped(config: Clipped) -> str:
    capped = "rho" if config.ratio_cap is None else f"min(rho, {config.ratio_cap:g})"
    term = f"min({capped} A, clip(rho, {1 - config.clip_low:g}, {1 + config.clip_high:g}) A)"
    if config.dual_clip is not None:
        term = f"max({term}, {config.dual_clip:g} A) if A < 0 else {term}"
    return term
