"""What an algorithm is: choices among the pieces (its defaults), and the one function in which it differs."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from algos.pieces import advantages as advantage_pieces
from algos.pieces.critic import value_loss
from algos.pieces.estimator import Estimator, policy_loss
from algos.pieces.kl import adapt_coefficient
from algos.pieces.masked import masked_whiten


@torch.no_grad()
def advantages(batch, config: Estimator) -> Tensor:
    """Advantages of a rollout batch, whose rows of one group are adjacent: -> (B, 1) or (B, T), no grad."""
    if not config.has_critic:
        return advantage_pieces.without_critic(batch, config)
    raw = advantage_pieces.from_critic(batch, config, config.gae_lambda)
    return masked_whiten(raw, batch.loss_mask, ddof=config.std_ddof) if config.scale == "whiten" else raw


def adapt(config: Estimator, metrics: dict[str, float], responses: int) -> Estimator:
    """The settings for the next rollout batch: kl_coef steered toward kl_target, where there is one."""
    if config.kl_target is None:
        return config
    return replace(
        config,
        kl_coef=adapt_coefficient(
            config.kl_coef, metrics["kl_to_ref_sequence"], config.kl_target, responses, config.kl_horizon
        ),
    )


@dataclass(frozen=True)
class Algorithm:
    """An entry of the table algos.ALGORITHMS. All functions are pure functions of tensors.

    defaults    the algorithm's settings; their class says which settings there are
    objective   (log_ratio, logprobs, advantages, mask, config) -> what a token or response adds to the objective, and
                the tensors whose shares are logged; see algos.pieces.estimator.policy_loss
    term        (config) -> the same as text, for `python -m algos describe`
    idea        one sentence; source: paper and section; relative: the nearest algorithm in the table
    advantages  (batch, config) -> (B, 1) or (B, T), no grad; by default from the settings baseline, scale and credit
    adapt       (config, metrics of the rollout batch, responses) -> the next rollout batch's config
    run         settings of the loop that belong to it, such as epochs; a run's own come after them, its rewards are
                added to the study's
    update      replaces the optimizer's step by one of its own (TRPO); see algos.trpo.trust_region_step
    measures_kl_after_update  asks for the metric kl_after_update, which costs a forward pass of the rollout batch
    preset_of   for an "as X" preset: the algorithm that it is a version of
    notes       for a preset: what is copied from where, and what is not
    """

    defaults: Estimator
    objective: Callable
    term: Callable
    idea: str
    source: str
    relative: str = ""
    advantages: Callable = advantages
    adapt: Callable = adapt
    run: dict = field(default_factory=dict)
    update: Callable | None = None
    measures_kl_after_update: bool = False
    preset_of: str = ""
    notes: tuple[str, ...] = ()

    @property
    def config(self) -> type[Estimator]:
        return type(self.defaults)

    def loss(self, logprobs, old_logprobs, advantages, response_mask, config, totals, ref_logprobs=None, **others):
        """Policy loss of one micro-batch, and metrics that add up; see algos.pieces.estimator.policy_loss."""
        return policy_loss(
            self.objective, logprobs, old_logprobs, advantages, response_mask, config, totals, ref_logprobs, **others
        )

    @torch.no_grad()
    def returns(self, batch, config) -> Tensor:
        """The critic's targets, A + V with advantages that are not whitened: -> (B, T), 0 on padding, no grad."""
        lam = config.gae_lambda if config.gae_lambda_critic is None else config.gae_lambda_critic
        targets = advantage_pieces.from_critic(batch, config, lam) + batch.values
        return targets.where(batch.response_mask, targets.new_zeros(()))

    def value_loss(self, values, old_values, returns, response_mask, config, totals):
        """Critic loss of one micro-batch, and metrics that add up; see algos.pieces.critic.value_loss."""
        return value_loss(values, old_values, returns, response_mask, config, totals)
