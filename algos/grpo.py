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

from algos.pieces.algorithm import Algorithm
from algos.pieces.clipping import Clipped, clipped_objective, describe_clipped
from algos.pieces.settings import settings


@settings
class GRPOConfig(Clipped):
    baseline = "group_mean"
    scale = "group_std"
    ratio = "token"
    aggregation = "seq-mean-token-mean"


ALGORITHM = Algorithm(
    GRPOConfig(),
    clipped_objective,
    describe_clipped,
    "clipped token ratios, rewards normalized within the group instead of a critic",
    "arXiv:2402.03300, section 4.1",
    relative="ppo",
)
