"""Clip-Cov and KL-Cov: GRPO that holds back the few tokens whose covariance costs the most entropy.

    C_it = (A_it - mean of A) (log pi(y_it) - mean of log pi),  means over all tokens of the optimizer step
    Clip-Cov: a share of all tokens, drawn among those with C in a range that PPO's clip leaves alone, gets no gradient
    KL-Cov: J = 1 / sum_i T_i  sum_it rho_it A_i - [C_it among the share of largest C] coef |log rho_it|

Source: Cui et al. 2025, arXiv:2505.22617v1, section 4.3, equations 10 to 14; compared with verl 018f23b (clip_cov,
kl_cov). Entropy falls where likely tokens have high advantages, which a few tokens bring about. PPO's clip stays on in
Clip-Cov, as in verl, and is off in KL-Cov. Both count their tokens in the divisor.

Here tokens of covariance 0 or less are never penalized, so that a step of equal advantages has no penalty. The draw is
the same one for the same number of candidates.
"""

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from algos.pieces.algorithm import Algorithm
from algos.pieces.clipping import Clipped, clipped_objective, clipped_selection, describe_clipped
from algos.pieces.estimator import Estimator, needs_token_ratio
from algos.pieces.kl import log_ratio
from algos.pieces.masked import masked_mean
from algos.pieces.settings import Share, settings
from algos.pieces.types import Batch, Shares


@settings
class ClipCovConfig(Clipped):
    baseline = "group_mean"
    scale = "group_std"
    ratio = "token"
    aggregation = "token-mean"
    cov_share: Share = 2.0e-4  # of the step's tokens, at least one if there is a candidate
    cov_low: float = 1.0  # candidates have a covariance above this
    cov_high: float = 5.0  # and below this

    def __post_init__(self):
        super().__post_init__()
        needs_token_ratio(self, "Clip-Cov picks tokens")
        if self.cov_low >= self.cov_high:
            raise ValueError(f"cov_low {self.cov_low:g} must be below cov_high {self.cov_high:g}")


@settings
class KLCovConfig(Estimator):
    baseline = "group_mean"
    scale = "group_std"
    ratio = "token"
    aggregation = "token-mean"
    cov_share: Share = 2.0e-3  # of the step's tokens, at least one
    cov_penalty: NonNegativeFloat = 1.0  # weight of |log rho| of those tokens

    def __post_init__(self):
        super().__post_init__()
        needs_token_ratio(self, "KL-Cov picks tokens")


def covariances(minibatch: Batch) -> Tensor:
    """(B, T): of advantage and log-probability around their means over all tokens; 0 outside the mask."""
    assert minibatch.logprobs is not None and minibatch.advantages is not None
    mask, product = minibatch.loss_mask, torch.ones_like(minibatch.logprobs)
    for x in (minibatch.advantages.expand_as(mask), minibatch.logprobs):
        product = product * (x - masked_mean(x, mask))
    return torch.where(mask, product, 0.0)


def number_of(mask: Tensor, share: float) -> int:
    return max(int(share * int(mask.sum())), int(share > 0))


def free_tokens(minibatch: Batch, hparams: ClipCovConfig) -> Tensor:
    """(B, T) bool: False for the tokens that Clip-Cov has drawn."""
    assert minibatch.logprobs is not None and minibatch.old_logprobs is not None and minibatch.advantages is not None
    mask, cov = minibatch.loss_mask, covariances(minibatch)
    moved = log_ratio(minibatch.logprobs, minibatch.old_logprobs, mask)
    clipped = clipped_objective(moved, minibatch.logprobs, minibatch.advantages, mask, hparams)[1]["clip_fraction"]
    candidates = (mask & ~clipped & (cov > hparams.cov_low) & (cov < hparams.cov_high)).nonzero()
    order = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(0)).to(mask.device)
    drawn = candidates[order[: number_of(mask, hparams.cov_share)]]
    free = torch.ones_like(mask)
    free[drawn[:, 0], drawn[:, 1]] = False
    return free


def costly_tokens(minibatch: Batch, hparams: KLCovConfig) -> Tensor:
    """(B, T) bool: True for the tokens of the largest covariance."""
    cov = covariances(minibatch)
    top = cov.flatten().topk(number_of(minibatch.loss_mask, hparams.cov_share)).indices
    return torch.zeros_like(cov, dtype=torch.bool).flatten().index_fill(0, top, True).view_as(cov) & (cov > 0)


def kl_cov_objective(
    log_ratio: Tensor, logprobs: Tensor, advantages: Tensor, mask: Tensor, hparams: KLCovConfig, selected: Tensor
) -> tuple[Tensor, Shares]:
    """ratio A, minus the penalty on the selected tokens: (B, T)."""
    penalty = torch.where(selected, hparams.cov_penalty * log_ratio.abs(), 0.0)
    return log_ratio.exp() * advantages - penalty, {"covariance_penalized": selected}


ALGORITHM = Algorithm(
    ClipCovConfig(),
    clipped_selection,
    lambda hparams: (
        f"{describe_clipped(hparams)}, or 0 for {hparams.cov_share:g} of all tokens, drawn among those whose "
        f"covariance of A and log pi is between {hparams.cov_low:g} and {hparams.cov_high:g}"
    ),
    "GRPO without the gradient of a few tokens of high covariance, drawn at random",
    "arXiv:2505.22617v1, section 4.3, equations 12 and 13; verl 018f23b",
    relative="grpo",
    select=free_tokens,
)
KL = Algorithm(
    KLCovConfig(),
    kl_cov_objective,
    lambda hparams: (
        f"rho A - {hparams.cov_penalty:g} |log rho| for the {hparams.cov_share:g} of all tokens with the largest "
        "covariance of A and log pi, rho A for the others"
    ),
    "GRPO without a clip, and with a penalty on how far the tokens of highest covariance move",
    "arXiv:2505.22617v1, section 4.3, equations 10, 11 and 14; verl 018f23b",
    relative="clip_cov",
    select=costly_tokens,
)
