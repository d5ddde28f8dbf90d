"""RAFT: supervised steps on the policy's own correct responses.

    J = 1 / sum over correct i of T_i  sum over correct i, t  log pi(y_it)

Source: Dong et al. 2023, arXiv:2304.06767, algorithm 1; as reinforcement learning Xiong et al. 2025, arXiv:2504.11343.
RAFT is REINFORCE with rewards 0 and 1, no baseline and no negative examples. So entropy falls fast, and prompts that
are often solved weigh more.
"""

from torch import Tensor

from algos.pieces.algorithm import Algorithm
from algos.pieces.settings import settings
from algos.pieces.types import Batch
from algos.reinforce import ReinforceConfig, reinforce_objective, term


@settings
class RAFTConfig(ReinforceConfig):
    keep = "correct"
    aggregation = "token-mean"

    def __post_init__(self):
        super().__post_init__()
        for name, only in (("baseline", "none"), ("scale", "none"), ("credit", "response")):
            if getattr(self, name) != only:
                raise ValueError(f"RAFT's advantages are all 1: {name} must be {only}, got {getattr(self, name)}")
        if self.kl_coef and self.kl_in == "reward":
            raise ValueError("RAFT's advantages are all 1, no reward enters them: kl_in must be loss, got reward")


def all_ones(batch: Batch, hparams: RAFTConfig) -> Tensor:
    """1 for every kept response: (B, 1). With keep `correct`, wrong responses count neither in loss nor in divisor."""
    return batch.rewards.new_ones((len(batch.rewards), 1))


ALGORITHM = Algorithm(
    RAFTConfig(),
    reinforce_objective,
    term,
    "negative log-likelihood of the policy's own correct responses",
    "arXiv:2304.06767, algorithm 1",
    relative="reinforce",
    advantages=all_ones,
)
