"""Importance ratios pi / pi_old of sampled tokens, as logarithms, at every level that an algorithm uses.

token           one per token (PPO, GRPO)
sequence        one per response: the geometric mean over its tokens (GSPO, arXiv:2507.18071, eq. 7)
sequence_token  the value of `sequence` for each token, with the gradient of that token alone (GSPO-token, eq. 14)
product         one per response: the ratio of whole-response probabilities; it explodes or vanishes with length
none            no ratio: the objective is linear in the log-probabilities (REINFORCE)
"""

from typing import Literal

from torch import Tensor

from algos.pieces.kl import log_ratio
from algos.pieces.masked import masked_mean, masked_sum

MAX_LOG_RATIO = 20.0


def token(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Three (B, T) -> (B, T); 0 on padding."""
    return log_ratio(logprobs, old_logprobs, mask)


def sequence(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Three (B, T) -> (B, 1): mean log-ratio over the response's tokens."""
    return masked_mean(log_ratio(logprobs, old_logprobs, mask), mask, dim=1, keepdim=True)


def sequence_token(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Three (B, T) -> (B, T): the values of `sequence` in each row, and in each cell the gradient of its own token."""
    own = log_ratio(logprobs, old_logprobs, mask)
    return sequence(logprobs, old_logprobs, mask).detach() + own - own.detach()


def product(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Three (B, T) -> (B, 1): summed log-ratio, clamped to +-20."""
    return whole_response(log_ratio(logprobs, old_logprobs, mask), mask)


def whole_response(token_log_ratio: Tensor, mask: Tensor) -> Tensor:
    """Log-ratios of tokens (B, T) -> of responses (B, 1): their sum, clamped to +-20."""
    return masked_sum(token_log_ratio, mask, dim=1, keepdim=True).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


Level = Literal["none", "token", "sequence", "sequence_token", "product"]
LEVELS = {"none": token, "token": token, "sequence": sequence, "sequence_token": sequence_token, "product": product}
PER_RESPONSE = ("sequence", "product")  # levels with one ratio per response, (B, 1)
