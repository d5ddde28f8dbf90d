"""PPO: the clipped objective with one importance ratio per token, advantages from a critic by GAE.

    J = 1 / sum_i T_i  sum_it min(rho_it A_it, clip(rho_it, 1 - eps, 1 + eps) A_it),   rho_it = pi(y_it) / pi_old(y_it)
    A_it = sum_k (gamma lambda)^k delta_{i,t+k},   delta_it = r_it + gamma V_{i,t+1} - V_it,   whitened over the batch

Source: Schulman et al. 2017, arXiv:1707.06347 (objective), and 2016, arXiv:1506.02438 (GAE); for language
models Stiennon et al. 2020, arXiv:2009.01325, and Huang et al. 2024, arXiv:2403.17031.

Where codebases disagree:
- the reward stands on the last *valid* token of a response, not in the last column of the padded batch; a response
  that reached the length limit counts as ended there;
- the KL penalty, if any, is in the reward: -kl_coef * (old_logprobs - ref_logprobs), k1, computed once;
- advantages are whitened over the valid tokens of the whole rollout batch, sample variance (TRL, verl);
- the loss is the mean over tokens; the value loss is half the mean of the larger of two squared errors (TRL, verl).
"""

import torch
from torch import Tensor

from algos.pieces.algorithm import Algorithm
from algos.pieces.clipping import Clipped, clipped_objective, describe_clipped
from algos.pieces.critic import WithCritic
from algos.pieces.settings import settings


@settings
class PPOConfig(WithCritic, Clipped):
    baseline = "critic"
    scale = "whiten"
    ratio = "token"
    aggregation = "token-mean"
    kl_in = "reward"
    kl_estimator = "k1"


def reference_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    mask: Tensor,
    rewards: Tensor,
    values: Tensor,
    group_size: int,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    gae_lambda: float = 0.95,
) -> Tensor:
    """The loss of ALGORITHM with its default hyperparameters on a whole rollout batch, in plain torch.

    logprobs, old_logprobs  (B, T)  log-probability of each sampled token, in nats; only logprobs carries gradient
    mask                    (B, T)  bool, True on the tokens of the response; at least one token in each row
    rewards                 (B,)    one per response; the responses to one prompt (a group) are adjacent
    values                  (B, T)  the critic's values before each token. The critic has a loss of its own:
                                    algos.pieces.critic.value_loss
    group_size              not used: PPO compares no response with another
    """
    lengths = mask.sum(dim=1, keepdim=True)  # (B, 1)
    last = torch.arange(mask.shape[1], device=mask.device) == lengths - 1  # (B, T)
    values = torch.where(mask, values, 0.0)
    next_values = torch.nn.functional.pad(values[:, 1:], (0, 1))
    deltas = torch.where(last, rewards[:, None], 0.0) + next_values - values
    advantages, later = torch.zeros_like(values), torch.zeros_like(rewards)
    for t in reversed(range(mask.shape[1])):
        advantages[:, t] = later = deltas[:, t] + gae_lambda * later
    spread = (advantages[mask].var() + 1.0e-8).sqrt()
    advantages = (advantages - advantages[mask].mean()) / spread  # (B, T): one per token
    log_ratio = torch.where(mask, logprobs - old_logprobs, 0.0)  # (B, T)
    ratio = log_ratio.exp()  # (B, T): one per token
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    objective = torch.minimum(ratio * advantages, clipped * advantages)
    return -objective[mask].mean()  # over the tokens of the batch


ALGORITHM = Algorithm(
    PPOConfig(),
    clipped_objective,
    describe_clipped,
    "clipped token ratios, advantages from a separate critic by GAE",
    "arXiv:1707.06347, section 3",
    relative="grpo",
)
