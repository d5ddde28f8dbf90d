"""Top-entropy tokens: DAPO that learns from the tokens at which the policy is least certain, and from no others.

    J = 1 / sum_i T_i  sum_it [H_it among the largest fifth] min(rho_it A_i, clip(rho_it) A_i),   the rest as in DAPO

Source: Wang et al. 2025, arXiv:2506.01939v2, section 5, equation 6; compared with the authors' code
(Shenzhi-Wang/Beyond-the-80-20-Rule-RLVR 9273158) and with TRL 1.12. H is the entropy of the distribution that the token
was drawn from, under the policy before the step; tokens are ranked together over all responses of the step. The few
uncertain tokens are where a chain of thought forks; the others follow from them.

As in TRL, the tokens left out still count in the divisor. The authors divide by the tokens that are left, a constant
factor of 5, and rank each micro-batch by itself.
"""

from dataclasses import replace
from typing import Annotated

from pydantic import Field
from torch import Tensor

from algos import dapo
from algos.grpo import GRPOConfig
from algos.pieces.clipping import clipped_selection, describe_clipped
from algos.pieces.estimator import needs_token_ratio
from algos.pieces.settings import settings
from algos.pieces.types import Batch


@settings
class TopEntropyConfig(GRPOConfig):
    clip_high = 0.28
    aggregation = "token-mean"
    dynamic_sampling = True
    entropy_share: Annotated[float, Field(gt=0, le=1)] = 0.2  # of the step's tokens, those of the highest entropy

    def __post_init__(self):
        super().__post_init__()
        needs_token_ratio(self, "the entropy picks tokens")


def uncertain_tokens(minibatch: Batch, hparams: TopEntropyConfig) -> Tensor:
    """(B, T) bool: True for the tokens whose entropy is at least the quantile."""
    entropies, mask = minibatch.entropies, minibatch.loss_mask
    assert entropies is not None
    return entropies >= entropies[mask].quantile(1 - hparams.entropy_share) if mask.any() else mask


ALGORITHM = replace(
    dapo.ALGORITHM,
    defaults=TopEntropyConfig(),
    objective=clipped_selection,
    term=lambda hparams: (
        f"{describe_clipped(hparams)}, or 0 for all but the {hparams.entropy_share:g} of all tokens with the highest "
        "entropy"
    ),
    idea="DAPO that learns from the fifth of the tokens at which the policy is least certain",
    source="arXiv:2506.01939v2, section 5; the authors' code 9273158",
    relative="dapo",
    select=uncertain_tokens,
)
