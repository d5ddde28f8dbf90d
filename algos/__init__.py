"""The algorithms under comparison, one file each, and the table of all of them.

To add one: its file here, its line in ALGORITHMS, a run in the study file. README.md shows an example.
"""

from collections.abc import Callable
from dataclasses import dataclass

from algos import grpo, gspo, ppo
from algos.grpo import GRPOConfig
from algos.gspo import GSPOConfig
from algos.ppo import PPOConfig


@dataclass(frozen=True)
class Algorithm:
    """What the training loop needs to know of an algorithm.

    config       frozen dataclass of its hyperparameters; a field kl_coef > 0 asks for reference log-probabilities
    advantages   (batch, config) -> (B, 1) or (B, T), no grad
    loss         (logprobs, old_logprobs, advantages, response_mask, config, totals, ref_logprobs) -> scalar, metrics
    estimator    (config) -> dict: what the settings resolve to, for the record
    returns      (batch, config) -> (B, T), the critic's targets; given exactly if value_loss is
    value_loss   (values, old_values, returns, response_mask, config, totals) -> scalar, metrics; it asks for a critic
    min_group    the smallest number of responses per prompt that the advantages are defined for
    """

    config: type
    advantages: Callable
    loss: Callable
    estimator: Callable
    returns: Callable | None = None
    value_loss: Callable | None = None
    min_group: int = 1

    @property
    def has_critic(self) -> bool:
        return self.value_loss is not None


ALGORITHMS: dict[str, Algorithm] = {
    "ppo": Algorithm(PPOConfig, ppo.advantages, ppo.loss, ppo.estimator, ppo.returns, ppo.value_loss),
    "grpo": Algorithm(GRPOConfig, grpo.advantages, grpo.loss, grpo.estimator, min_group=2),
    "gspo": Algorithm(GSPOConfig, grpo.advantages, gspo.loss, gspo.estimator, min_group=2),
}
