"""What the training loop needs to know of an algorithm. Each algorithm's file ends by filling this in."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Algorithm:
    """The pieces of an algorithm, all pure functions of tensors.

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

    def __post_init__(self):
        if (self.returns is None) != (self.value_loss is None):
            raise ValueError("an algorithm with a critic gives both returns and value_loss, one without gives neither")

    @property
    def has_critic(self) -> bool:
        return self.value_loss is not None
