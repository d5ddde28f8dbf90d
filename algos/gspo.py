"""GSPO: the clipped objective with one importance ratio per response.

    J = 1 / B  sum_i  min(s_i A_i, clip(s_i, 1 - eps_low, 1 + eps_high) A_i)
    s_i = exp(1 / T_i  sum_t  log pi(y_it) - log pi_old(y_it)),   A_i as in GRPO

Source: Zheng et al. 2025, arXiv:2507.18071, section 4.1; clip range from section 5.1. Differs from grpo.py in one
place: the ratio is the geometric mean over a response's tokens, so that the clip keeps or drops whole responses.

The paper's clip range suits its models and learning rates. A length-normalized ratio stays near 1; how near depends on
how far an optimizer step moves the policy. Watch clip_fraction before trusting a comparison. Several frameworks ship
GSPO with GRPO's clip range of 0.2, at which GSPO practically never clips.

GSPO-token (section 4.3) gives every token the value of the response's ratio and the token's own gradient. With one
advantage per response it equals GSPO. It also permits an advantage per token.
"""

from dataclasses import replace

import torch
from torch import Tensor

from algos.pieces.algorithm import Algorithm
from algos.pieces.clipping import Clipped, clipped_objective, describe_clipped
from algos.pieces.settings import settings


@settings
class GSPOConfig(Clipped):
    baseline = "group_mean"
    scale = "group_std"
    ratio = "sequence"
    aggregation = "seq-mean-token-mean"
    clip_low = 3.0e-4  # far below PPO's 0.2: averaging over tokens keeps the ratio near 1
    clip_high = 4.0e-4


def reference_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    mask: Tensor,
    rewards: Tensor,
    values: Tensor,
    group_size: int,
    clip_low: float = 3.0e-4,
    clip_high: float = 4.0e-4,
) -> Tensor:
    """The loss of ALGORITHM with its default hyperparameters on a whole rollout batch, in plain torch.

    logprobs, old_logprobs  (B, T)  log-probability of each sampled token, in nats; only logprobs carries gradient
    mask                    (B, T)  bool, True on the tokens of the response; at least one token in each row
    rewards                 (B,)    one per response; the responses to one prompt (a group) are adjacent
    values                  (B, T)  not used: GSPO has no critic
    group_size              number of responses to one prompt
    """
    lengths = mask.sum(dim=1, keepdim=True)  # (B, 1)
    groups = rewards.view(-1, group_size)
    centered = groups - groups.mean(dim=1, keepdim=True)
    advantages = (centered / (groups.std(dim=1, keepdim=True) + 1.0e-6)).view(-1, 1)  # (B, 1): one per response
    log_ratio = torch.where(mask, logprobs - old_logprobs, 0.0)  # (B, T)
    ratio = (log_ratio.sum(dim=1, keepdim=True) / lengths).exp()  # (B, 1): one per response
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    objective = torch.minimum(ratio * advantages, clipped * advantages)
    return -objective.mean()  # over responses


ALGORITHM = Algorithm(
    GSPOConfig(),
    clipped_objective,
    describe_clipped,
    "GRPO with one length-normalized ratio per response, clipped as a whole",
    "arXiv:2507.18071, section 4.1",
    relative="grpo",
)
TOKEN = replace(
    ALGORITHM,
    defaults=GSPOConfig(ratio="sequence_token"),
    idea="GSPO's ratio as value, each token's own gradient: permits an advantage per token",
    source="arXiv:2507.18071, section 4.3",
    relative="gspo",
)
