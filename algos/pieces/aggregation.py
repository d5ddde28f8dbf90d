"""From a per-token matrix to one number: the weight of a token in an optimizer step.

mode                     weight of one token of response i   used by
seq-mean-token-mean      1 / (B T_i)                         GRPO's paper, GSPO, SAPO
token-mean               1 / sum_i T_i                       DAPO, CISPO, PPO
seq-mean-token-sum       1 / B                               REINFORCE, RLOO: the policy gradient of a response's reward
seq-mean-token-sum-norm  1 / (B length)                      Dr. GRPO

B and sum_i T_i count the whole optimizer step, so that micro-batches add up to the step exactly.
"""

from typing import Literal, get_args

from torch import Tensor

from algos.pieces.masked import masked_mean, masked_sum
from algos.pieces.types import Totals

Aggregation = Literal["seq-mean-token-mean", "token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"]
MODES = get_args(Aggregation)


def aggregate(x: Tensor, mask: Tensor, mode: str, totals: Totals, length: int | None = None) -> Tensor:
    """x (B, T), or (B, 1) for one number per response; mask (B, T) bool: -> scalar.

    totals counts the responses and tokens of the whole optimizer step. length is the constant divisor of
    seq-mean-token-sum-norm. Numbers per response are averaged over responses in every mode. Empty responses do not
    count.
    """
    if x.shape[1] == 1 and mask.shape[1] != 1:
        return masked_sum(x, mask.any(dim=1, keepdim=True)) / totals.responses
    if mode == "token-mean":
        return masked_sum(x, mask) / totals.response_tokens
    if mode == "seq-mean-token-mean":
        return masked_mean(x, mask, dim=1).sum() / totals.responses
    if mode == "seq-mean-token-sum":
        return masked_sum(x, mask) / totals.responses
    if mode == "seq-mean-token-sum-norm":
        if length is None:
            raise ValueError("aggregation seq-mean-token-sum-norm needs aggregation_length, got None")
        return masked_sum(x, mask) / totals.responses / length
    raise ValueError(f"aggregation must be one of {', '.join(MODES)}, got {mode!r}")
