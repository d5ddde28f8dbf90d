"""The definition of an algorithm: choices among the pieces (its default hparams), and its own objective function."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from algos.pieces import advantages as advantage_pieces
from algos.pieces import critic
from algos.pieces.critic import WithCritic
from algos.pieces.estimator import Estimator, policy_loss
from algos.pieces.kl import adapt_coefficient
from algos.pieces.masked import masked_whiten
from algos.pieces.types import Batch, Objective

Hparams = TypeVar("Hparams", bound=Estimator)


@torch.no_grad()
def advantages(batch: Batch, hparams: Estimator) -> Tensor:
    """Advantages of a rollout batch, in which the rows of a group are adjacent: -> (B, 1) or (B, T), no grad."""
    if not isinstance(hparams, WithCritic):
        return advantage_pieces.without_critic(batch, hparams)
    raw = advantage_pieces.from_critic(batch, hparams, hparams.gae_lambda)
    return masked_whiten(raw, batch.loss_mask, ddof=hparams.std_ddof) if hparams.scale == "whiten" else raw


def adapt(hparams: Hparams, metrics: dict[str, float], responses: int) -> Hparams:
    """The hyperparameters of the next rollout batch: kl_coef steered toward kl_target, where there is one."""
    if hparams.kl_target is None:
        return hparams
    return replace(
        hparams,
        kl_coef=adapt_coefficient(
            hparams.kl_coef, metrics["kl_to_ref_sequence"], hparams.kl_target, responses, hparams.kl_horizon
        ),
    )


@dataclass(frozen=True)
class Algorithm:
    """An entry of the table algos.ALGORITHMS. All functions are pure functions of tensors.

    defaults    the algorithm's hyperparameters (hparams) with their default values; their class lists all of them
    objective   (log_ratio, logprobs, advantages, mask, hparams) -> the value that each token or response adds to the
                objective, and tensors whose shares are logged; see algos.pieces.types.Objective
    term        (hparams) -> the objective as text, for `python -m algos describe`
    idea        one sentence
    source      paper and section
    relative    the nearest algorithm in the table
    advantages  (batch, hparams) -> (B, 1) or (B, T), no grad; default: made by hparams baseline, scale and credit
    select      (minibatch, hparams) -> (B, T) bool: the tokens that the objective treats in another way, chosen among
                all tokens of an optimizer step. The minibatch holds the policy's log-probabilities and entropies before
                the step, which cost a forward pass.
    adapt       (hparams, metrics of the rollout batch, responses) -> the hparams of the next rollout batch
    run         settings of the training loop that the algorithm asks for, such as epochs. A run's own settings win over
                them. Rewards in `run` are added to the rewards of the study.
    update      a function that replaces the optimizer's step (TRPO); see algos.trpo.trust_region_step
    measures_kl_after_update  asks for the metric kl_after_update, which costs one forward pass of the rollout batch
    preset_of   for an "as X" preset: the algorithm of which the preset is a version
    notes       for a preset: what it copies from the framework, and what it does not copy
    """

    defaults: Estimator
    objective: Objective
    term: Callable[[Any], str]
    idea: str
    source: str
    relative: str = ""
    advantages: Callable[[Batch, Any], Tensor] = advantages
    select: Callable[[Batch, Any], Tensor] | None = None
    adapt: Callable[[Any, dict[str, float], int], Any] = adapt
    run: dict = field(default_factory=dict)
    update: Callable | None = None
    measures_kl_after_update: bool = False
    preset_of: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        for name, kind, wanted in (
            ("defaults", Estimator, "an Estimator or a class made from it"),
            ("run", dict, "a dict of settings"),
            ("idea", str, "text"),
            ("source", str, "text"),
        ):
            if not isinstance(value := getattr(self, name), kind):
                raise TypeError(f"Algorithm.{name} must be {wanted}, got {str(value)[:80]!r}")
        for name in ("objective", "term", "advantages", "adapt", "select", "update"):
            value = getattr(self, name)
            if not callable(value) and (value is not None or name not in ("select", "update")):
                raise TypeError(f"Algorithm.{name} must be a function, got {str(value)[:80]!r}")

    @property
    def loss(self) -> Callable[..., tuple[Tensor, dict[str, Tensor]]]:
        """Policy loss of one micro-batch, and metrics that add up; see algos.pieces.estimator.policy_loss."""
        return partial(policy_loss, self.objective)

    value_loss = staticmethod(critic.value_loss)  # the critic's, and metrics that add up

    @torch.no_grad()
    def returns(self, batch: Batch, hparams: WithCritic) -> Tensor:
        """The critic's targets: A + V, where the advantages A are not whitened. -> (B, T), 0 on padding, no grad."""
        lam = hparams.gae_lambda if hparams.gae_lambda_critic is None else hparams.gae_lambda_critic
        advantages = advantage_pieces.from_critic(batch, hparams, lam)
        assert batch.values is not None  # from_critic refuses a batch without values
        targets = advantages + batch.values
        return targets.where(batch.response_mask, targets.new_zeros(()))
