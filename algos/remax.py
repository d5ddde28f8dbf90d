"""ReMax: REINFORCE whose baseline is the reward of the greedy response to the same prompt.

    J = 1 / B  sum_i  (r_i - r(greedy response)) sum_t log pi(y_it)

Source: Li et al. 2023, arXiv:2310.10505, algorithm 1. The greedy response costs one more generation per prompt, which
counts in the budget. In return one sampled response per prompt is enough.
"""

from algos.pieces.algorithm import Algorithm
from algos.pieces.settings import settings
from algos.reinforce import ONE_STEP, ReinforceConfig, reinforce_objective, term


@settings
class ReMaxConfig(ReinforceConfig):
    baseline = "greedy"


ALGORITHM = Algorithm(
    ReMaxConfig(),
    reinforce_objective,
    term,
    "REINFORCE minus the reward of the greedy response",
    "arXiv:2310.10505, algorithm 1",
    relative="reinforce",
    run=ONE_STEP,
)
