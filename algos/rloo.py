"""RLOO: REINFORCE whose baseline is the mean reward of the group's other responses.

    J = 1 / B  sum_i  (r_i - mean_{j != i} r_j) sum_t log pi(y_it),   r_i <- r_i - kl_coef sum_t k1_it

Source: Ahmadian et al. 2024, arXiv:2402.14740, section 3; the baseline is from Kool et al. 2019. RLOO's advantages are
G / (G - 1) times those of reinforce_group, which makes RLOO unbiased. The KL penalty is part of the response's reward.
"""

from algos.pieces.algorithm import Algorithm
from algos.pieces.settings import settings
from algos.reinforce import ONE_STEP, ReinforceConfig, reinforce_objective, term


@settings
class RLOOConfig(ReinforceConfig):
    baseline = "leave_one_out"
    kl_coef = 0.03


ALGORITHM = Algorithm(
    RLOOConfig(),
    reinforce_objective,
    term,
    "REINFORCE minus the mean reward of the group's other responses; unbiased",
    "arXiv:2402.14740, section 3",
    relative="reinforce_group",
    run=ONE_STEP,
)
