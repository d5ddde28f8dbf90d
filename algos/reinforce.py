"""REINFORCE: the policy gradient of a response's reward, with no, the batch's or the group's mean as baseline.

    J = 1 / B  sum_i  (r_i - b) sum_t log pi(y_it)

Source: Williams 1992, "Simple statistical gradient-following algorithms". The *sum* over tokens gives the gradient of
the response's log-probability; a mean over tokens would be another objective. There is no ratio, so only the first
optimizer step of a rollout batch is on-policy, and the default is one step per batch. The mean of the group contains
the response itself, which shrinks the expected gradient by (G - 1) / G; rloo.py leaves the response out.
"""

from dataclasses import replace

from torch import Tensor

from algos.pieces.algorithm import Algorithm
from algos.pieces.estimator import Estimator
from algos.pieces.settings import settings
from algos.pieces.types import Shares

ONE_STEP = {"epochs": 1, "minibatches": 1}


@settings
class ReinforceConfig(Estimator):
    baseline = "none"
    ratio = "none"
    aggregation = "seq-mean-token-sum"
    kl_in = "reward"
    kl_estimator = "k1"

    def __post_init__(self):
        super().__post_init__()
        if self.ratio != "none":
            raise ValueError(f"REINFORCE has no ratio: ratio must be none, got {self.ratio}; cispo has a token ratio")


def reinforce_objective(
    log_ratio: Tensor, logprobs: Tensor, advantages: Tensor, mask: Tensor, hparams: ReinforceConfig
) -> tuple[Tensor, Shares]:
    """A log pi: (B, T). Its value has no meaning; its gradient is the policy gradient."""
    return advantages * logprobs, {}


def term(hparams: ReinforceConfig) -> str:
    return "A log pi"


ALGORITHM = Algorithm(
    ReinforceConfig(),
    reinforce_objective,
    term,
    "the plain policy gradient, no baseline",
    "Williams 1992, section 4",
    relative="rloo",
    run=ONE_STEP,
)
BATCH_BASELINE = replace(
    ALGORITHM, defaults=ReinforceConfig(baseline="batch_mean"), idea="REINFORCE minus the batch's mean reward"
)
GROUP_BASELINE = replace(
    ALGORITHM, defaults=ReinforceConfig(baseline="group_mean"), idea="REINFORCE minus the group's mean reward"
)
LENGTH_WEIGHTED = replace(
    ALGORITHM,
    defaults=ReinforceConfig(baseline="length_weighted"),
    idea="REINFORCE minus the group's mean reward weighted by length (OPO)",
    source="arXiv:2505.23585",
    relative="reinforce_group",
)
