"""REINFORCE++: PPO's clipped objective without a critic, advantages whitened over the whole batch.

    A_it = whiten(r_i - kl_coef sum_{k >= t} k1_ik),   J = 1 / sum_i T_i  sum_it min(rho_it A_it, clip(rho_it) A_it)
    baseline form: A_it = whiten(r_i - mean of the group), KL as a k2 loss

Source: Hu 2025, arXiv:2501.03262, section 3. Differs from grpo.py in the scale: one mean and one standard deviation
for all tokens of the batch, so that the difficulty of a prompt does not change the scale of its advantages.
"""

from dataclasses import replace

from algos.pieces.algorithm import Algorithm
from algos.pieces.clipping import Clipped, clipped_objective, describe_clipped
from algos.pieces.settings import settings


@settings
class ReinforcePPConfig(Clipped):
    baseline = "none"
    scale = "whiten"
    credit = "token"
    aggregation = "token-mean"
    kl_in = "reward"
    kl_estimator = "k1"
    kl_coef = 0.01


ALGORITHM = Algorithm(
    ReinforcePPConfig(),
    clipped_objective,
    describe_clipped,
    "PPO without a critic: reward-to-go with the KL penalty, whitened over the batch",
    "arXiv:2501.03262, section 3",
    relative="ppo",
)
BASELINE = replace(
    ALGORITHM,
    defaults=ReinforcePPConfig(baseline="group_mean", credit="response", kl_in="loss", kl_estimator="k2"),
    idea="group-centered rewards, whitened over the batch; KL as a k2 loss",
    relative="grpo",
)
