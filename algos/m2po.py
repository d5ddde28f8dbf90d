"""M2PO: GRPO without a clip; of the tokens that a clip would silence, the farthest are masked until the rest is near.

    J = 1 / sum_i T_i  sum_it M_it rho_it A_i
    M: of the tokens with A (rho - 1) > 0, those with the largest (log rho)^2 are 0, until its mean over the others
       is at most the threshold

Source: Zheng et al. 2025, arXiv:2510.01161v2, section 5.2, algorithm 1 and equation 5; compared with Trinity-RFT
3a41dc2 (m2po_policy_loss.py). The second moment of the log-ratio bounds the distance from the policy that sampled; only
outliers exceed it, so that far fewer tokens are lost than by a clip of each token. As in the paper, masked tokens still
count in the divisor.

The authors' published code differs from the paper: it caps log rho of those tokens at one number that brings their mean
to the threshold, and clips at that number, at least at (0.7, 1.5). All tokens of the optimizer step are sorted
together, which takes a forward pass before each step. The paper's denominator is the sampler.
"""

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from algos.pieces.algorithm import Algorithm
from algos.pieces.estimator import Estimator, needs_token_ratio
from algos.pieces.kl import log_ratio
from algos.pieces.settings import settings
from algos.pieces.types import Batch, Shares


@settings
class M2POConfig(Estimator):
    baseline = "group_mean"
    scale = "group_std"
    ratio = "token"
    aggregation = "token-mean"
    second_moment: NonNegativeFloat = 0.04  # largest mean of (log rho)^2 over the tokens that move on

    def __post_init__(self):
        super().__post_init__()
        needs_token_ratio(self, "M2PO sorts tokens by their ratios")


def near_tokens(minibatch: Batch, hparams: M2POConfig) -> Tensor:
    """(B, T) bool: False for the tokens that move on and are among the farthest."""
    assert minibatch.logprobs is not None and minibatch.old_logprobs is not None and minibatch.advantages is not None
    mask = minibatch.loss_mask
    moved = log_ratio(minibatch.logprobs, minibatch.old_logprobs, mask)  # 0 outside the mask
    moves_on = torch.where(mask, minibatch.advantages, 0.0) * moved > 0
    squares, order = (moved[moves_on] ** 2).sort()
    means = squares.cumsum(0) / torch.arange(1, len(squares) + 1, device=squares.device)  # of the nearest 1, 2, ...
    near = torch.empty_like(order, dtype=torch.bool)
    near[order] = means <= hparams.second_moment  # the means rise with the squares
    return torch.ones_like(mask).masked_scatter(moves_on, near)


def masked_objective(
    log_ratio: Tensor, logprobs: Tensor, advantages: Tensor, mask: Tensor, hparams: M2POConfig, selected: Tensor
) -> tuple[Tensor, Shares]:
    """ratio A for the selected tokens, 0 for the others: (B, T)."""
    objective = torch.where(selected, log_ratio.exp() * advantages, torch.zeros_like(log_ratio))
    low, high = ~selected & (advantages < 0), ~selected & (advantages > 0)
    return objective, {"clip_fraction": low | high, "clip_fraction_low": low, "clip_fraction_high": high}


ALGORITHM = Algorithm(
    M2POConfig(),
    masked_objective,
    lambda hparams: (
        "M rho A,  M = 0 for the tokens with A (rho - 1) > 0 and the largest (log rho)^2, "
        f"until its mean over the rest of them is at most {hparams.second_moment:g}"
    ),
    "no clip: the farthest tokens are masked until the mean squared log-ratio of the others is small",
    "arXiv:2510.01161v2, section 5.2; Trinity-RFT 3a41dc2",
    relative="grpo",
    select=near_tokens,
)
