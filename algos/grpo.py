"""GRPO: the clipped objective with one importance ratio per token, advantages from groups instead of a critic.

    J = 1 / B  sum_i  1 / T_i  sum_t  min(rho_it A_i, clip(rho_it, 1 - eps, 1 + eps) A_i) - kl_coef k3_it
    A_i = (r_i - mean of the group) / (standard deviation of the group + std_epsilon)

Source: Shao et al. 2024 (DeepSeekMath), arXiv:2402.03300, section 4.1. Differs from ppo.py in two places:
the advantage of a response is its reward normalized within the group of responses to the same prompt, one number for
all its tokens; and the loss averages over a response's tokens first, then over responses.

Where codebases disagree:
- standard deviation: the sample one (divisor G - 1), as in TRL, verl and oat; the paper does not say;
- aggregation: the paper's mean over responses of the mean over tokens; TRL's default is DAPO's token mean;
- clip_high: the paper's symmetric 0.2 is the default; DAPO (arXiv:2503.14476) raises it to 0.28;
- kl_coef: 0, as in TRL and DAPO; the paper adds 0.04 times the k3 estimate to the loss.
"""

import torch
from torch import Tensor

from algos.pieces.algorithm import Algorithm
from algos.pieces.clipping import Clipped, clipped_objective, describe_clipped
from algos.pieces.settings import settings


@settings
class GRPOConfig(Clipped):
    baseline = "group_mean"
    scale = "group_std"
    ratio = "token"
    aggregation = "seq-mean-token-mean"


def reference_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    mask: Tensor,
    rewards: Tensor,
    values: Tensor,
    group_size: int,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Tensor:
    """The loss of ALGORITHM with its default hyperparameters on a whole rollout batch, in plain torch.

    logprobs, old_logprobs  (B, T)  log-probability of each sampled token, in nats; only logprobs carries gradient
    mask                    (B, T)  bool, True on the tokens of the response; at least one token in each row
    rewards                 (B,)    one per response; the responses to one prompt (a group) are adjacent
    values                  (B, T)  not used: GRPO has no critic
    group_size              number of responses to one prompt
    """
    lengths = mask.sum(dim=1, keepdim=True)  # (B, 1)
    groups = rewards.view(-1, group_size)
    centered = groups - groups.mean(dim=1, keepdim=True)
    advantages = (centered / (groups.std(dim=1, keepdim=True) + 1.0e-6)).view(-1, 1)  # (B, 1): one per response
    log_ratio = torch.where(mask, logprobs - old_logprobs, 0.0)  # (B, T)
    ratio = log_ratio.exp()  # (B, T): one per token
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    objective = torch.minimum(ratio * advantages, clipped * advantages)
    per_response = torch.where(mask, objective, 0.0).sum(dim=1, keepdim=True) / lengths
    return -per_response.mean()  # over the tokens of each response, then over responses


ALGORITHM = Algorithm(
    GRPOConfig(),
    clipped_objective,
    describe_clipped,
    "clipped token ratios, rewards normalized within the group instead of a critic",
    "arXiv:2402.03300, section 4.1",
    relative="ppo",
)
