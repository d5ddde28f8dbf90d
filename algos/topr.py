"""TOPR: REINFORCE that weighs wrong responses by their ratio, at most 1, and right ones not at all.

    J = 1 / B  sum_i  sg(w_i) A_i sum_t log pi(y_it),   w_i = 1 if A_i >= 0, else min(W_i, 1),   W_i = prod_t rho_it

Source: Le Roux et al. 2025, arXiv:2503.14286, equation 8; compared with Trinity-RFT (topr_policy_loss.py, fork at
5b77c08). A wrong response that the policy has already moved away from has W near 0, so that it is not pushed down
without end. A right one keeps its full weight however unlikely it has become, like in supervised training. No ratio is
above 1, hence no variance explodes.

The paper's rewards are +1 and -1, without a baseline; it reads a baseline as a choice of how much right and wrong
responses weigh. Rewards here are 0 and 1, so the group's mean is the baseline. Trinity-RFT tapers by token, the paper
by response.
"""

import torch
from torch import Tensor

from algos.pieces.algorithm import Algorithm
from algos.pieces.estimator import Estimator, needs_token_ratio
from algos.pieces.ratios import whole_response
from algos.pieces.settings import settings
from algos.pieces.types import Shares


@settings
class TOPRConfig(Estimator):
    baseline = "group_mean"
    ratio = "token"
    aggregation = "seq-mean-token-sum"

    def __post_init__(self):
        super().__post_init__()
        needs_token_ratio(self, "TOPR multiplies the ratios of a response's tokens")


def tapered_objective(
    log_ratio: Tensor, logprobs: Tensor, advantages: Tensor, mask: Tensor, hparams: TOPRConfig
) -> tuple[Tensor, Shares]:
    """sg(w) A log pi: (B, T)."""
    taper = whole_response(log_ratio.detach(), mask).clamp(max=0.0).exp()  # (B, 1)
    weight = torch.where(advantages < 0, taper, torch.ones_like(taper))
    return weight * advantages * logprobs, {"response_weight": weight, "response_weight_below_half": weight < 0.5}


ALGORITHM = Algorithm(
    TOPRConfig(),
    tapered_objective,
    lambda hparams: "sg(w) A log pi,  w = 1 if A >= 0, else min(prod_t rho, 1)",
    "REINFORCE with the ratio of whole responses, at most 1, on wrong responses alone",
    "arXiv:2503.14286, section 3; Trinity-RFT, topr_policy_loss.py",
    relative="reinforce_group",
)
