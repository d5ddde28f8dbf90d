"""PPO's clipped objective, and its hyperparameters, for any ratio and any advantages."""

from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor

from algos.pieces.estimator import Estimator, needs_ratio
from algos.pieces.masked import masked_mean
from algos.pieces.settings import settings
from algos.pieces.types import Shares

FAR = 0.1  # from 1: clip ranges beyond are for the ratios of single tokens


@settings
class Clipped(Estimator):
    clip_low: NonNegativeFloat = 0.2  # ratios below 1 - clip_low are not pushed further down
    clip_high: NonNegativeFloat = 0.2  # ratios above 1 + clip_high are not pushed further up
    dual_clip: Annotated[float, Field(gt=1)] | None = None  # c: with A < 0 the loss is at most -c A (arXiv:1912.09729)
    # nats per token: a response that drifted further is left out where A < 0 (DeepSeek-V3.2, arXiv:2512.02556)
    off_policy_threshold: PositiveFloat | None = None
    ratio_cap: float | None = None  # ratios are cut at this before the minimum (two-sided clip, arXiv:2505.07291)

    def __post_init__(self):
        super().__post_init__()
        needs_ratio(self)
        if self.ratio_cap is not None and self.ratio_cap < 1 + self.clip_high:
            raise ValueError(
                f"ratio_cap must be at least 1 + clip_high = {1 + self.clip_high:g}, or null for none, "
                f"got {self.ratio_cap}"
            )
        if self.off_policy_threshold is not None and self.ratio == "product":
            raise ValueError(
                f"off_policy_threshold {self.off_policy_threshold} is a mean over a response's tokens, "
                "ratio product a sum; use ratio token or sequence"
            )

    def warnings(self, optimizer_steps: int = 1) -> list[str]:
        found = super().warnings(optimizer_steps)
        if self.ratio.startswith("sequence") and optimizer_steps > 1 and min(self.clip_low, self.clip_high) > FAR:
            found.append(
                f"ratio {self.ratio} with clip_low {self.clip_low:g} and clip_high {self.clip_high:g}: a mean over a "
                "response's tokens hardly ever moves that far, so nothing is clipped; GSPO's are 3e-4 and 4e-4."
            )
        return found


def clipped_objective(
    log_ratio: Tensor, logprobs: Tensor, advantages: Tensor, mask: Tensor, hparams: Clipped
) -> tuple[Tensor, Shares]:
    """min(ratio A, clip(ratio) A): (B, T), or (B, 1) where the ratio is one per response; to be maximized.

    The minimum removes the incentive to leave the clip range. It does not bound the ratio: with A < 0 and a ratio above
    the range the gradient still flows, and grows with the ratio. Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7.
    """
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - hparams.clip_low, 1 + hparams.clip_high)
    capped = ratio if hparams.ratio_cap is None else ratio.clamp(max=hparams.ratio_cap)
    objective = torch.minimum(capped * advantages, clipped * advantages)
    silenced_high = (ratio > 1 + hparams.clip_high) & (advantages > 0)
    silenced_low = (ratio < 1 - hparams.clip_low) & (advantages < 0)
    shares = {
        "clip_fraction": silenced_high | silenced_low,
        "clip_fraction_low": silenced_low,
        "clip_fraction_high": silenced_high,
    }
    if hparams.dual_clip is not None:
        bounded = torch.where(advantages < 0, torch.maximum(objective, hparams.dual_clip * advantages), objective)
        shares["dual_clip_fraction"] = bounded > objective
        objective = bounded
    if hparams.off_policy_threshold is not None:
        drift = -masked_mean(log_ratio.detach(), mask, dim=1, keepdim=True)  # (B, 1), also where the ratio is a mean
        off_policy = (advantages < 0) & (drift > hparams.off_policy_threshold)
        shares["off_policy_fraction"] = off_policy
        objective = torch.where(off_policy, torch.zeros_like(objective), objective)
    return objective, shares


def clipped_selection(
    log_ratio: Tensor, logprobs: Tensor, advantages: Tensor, mask: Tensor, hparams: Clipped, selected: Tensor
) -> tuple[Tensor, Shares]:
    """The clipped objective for the selected tokens, 0 for the others: (B, T)."""
    objective, shares = clipped_objective(log_ratio, logprobs, advantages, mask, hparams)
    return torch.where(selected, objective, 0.0), {**shares, "left_out_fraction": ~selected}


def describe_clipped(hparams: Clipped) -> str:
    capped = "rho" if hparams.ratio_cap is None else f"min(rho, {hparams.ratio_cap:g})"
    term = f"min({capped} A, clip(rho, {1 - hparams.clip_low:g}, {1 + hparams.clip_high:g}) A)"
    if hparams.dual_clip is not None:
        term = f"max({term}, {hparams.dual_clip:g} A) if A < 0 else {term}"
    if hparams.off_policy_threshold is not None:
        limit = f"{hparams.off_policy_threshold:g}"
        term += f", or 0 where A < 0 and mean_t (log pi_old(y_it) - log pi(y_it)) > {limit}"
    return term
