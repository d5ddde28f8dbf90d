"""PPO: the clipped objective with one importance ratio per token, advantages from a critic by GAE.

    J = 1 / sum_i T_i  sum_it min(rho_it A_it, clip(rho_it, 1 - eps, 1 + eps) A_it),   rho_it = pi(y_it) / pi_old(y_it)
    A_it = sum_k (gamma lambda)^k delta_{i,t+k},   delta_it = r_it + gamma V_{i,t+1} - V_it,   whitened over the batch

Source: Schulman et al. 2017, arXiv:1707.06347 (objective), and 2016, arXiv:1506.02438 (GAE); for language
models Stiennon et al. 2020, arXiv:2009.01325, and Huang et al. 2024, arXiv:2403.17031.

Where codebases disagree:
- the reward stands on the last *valid* token of a response, never in the last column of the padded batch, and a
  response that ran into the length limit counts as ended there;
- the KL penalty, where there is one, is in the reward: -kl_coef * (old_logprobs - ref_logprobs), k1, computed once;
- advantages are whitened over the valid tokens of the whole rollout batch, sample variance (TRL, verl);
- the loss is the mean over tokens; the value loss is half the mean of the larger of two squared errors (TRL, verl).
"""

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


ALGORITHM = Algorithm(
    PPOConfig(),
    clipped_objective,
    describe_clipped,
    "clipped token ratios, advantages from a separate critic by GAE",
    "arXiv:1707.06347, section 3",
    relative="grpo",
)
