"""The choices that every policy-gradient algorithm here is made of, and the loss that puts them together.

prompts -> advantages (baseline, scale, credit) -> ratio (level) -> objective (the algorithm's own: how ratio and
advantage are joined) -> aggregation, minus a KL term, plus an entropy bonus. An algorithm's file names its choices and
adds its objective. A study file may change any choice. Impossible combinations are refused here, by name.
"""

from dataclasses import fields
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator
from torch import Tensor

from algos.pieces import advantages as advantage_pieces
from algos.pieces import correction as correction_pieces
from algos.pieces import ratios
from algos.pieces.advantages import Baseline, Scale
from algos.pieces.aggregation import Aggregation, aggregate
from algos.pieces.correction import Correction
from algos.pieces.diagnostics import ratio_metrics
from algos.pieces.kl import KLEstimator, kl_loss
from algos.pieces.masked import masked_sum
from algos.pieces.ratios import Level
from algos.pieces.settings import settings
from algos.pieces.types import Objective, Totals


@settings
class Estimator:
    # advantages: baseline, scale, credit

    baseline: Baseline = "group_mean"  # what is subtracted from a response's reward
    scale: Scale = "none"  # what the difference is divided by; whiten, whiten_minibatch: over tokens
    # 1: sample standard deviation (TRL, verl, oat), 0: population; papers do not say
    std_ddof: Annotated[int, Field(ge=0, le=1)] = 1
    std_epsilon: NonNegativeFloat = 1.0e-6  # added to the standard deviation of a group or of the batch's rewards
    credit: Literal["response", "token"] = "response"  # token: a KL penalty counts from its token on

    # loss: ratio level and aggregation

    ratio: Level = "token"  # see algos/pieces/ratios.py
    aggregation: Aggregation = "seq-mean-token-mean"  # see algos/pieces/aggregation.py
    aggregation_length: PositiveInt | None = None  # constant of seq-mean-token-sum-norm; null: max_response_tokens

    # KL to the frozen reference

    kl_coef: NonNegativeFloat = 0.0  # 0: no KL term and no reference
    kl_in: Literal["loss", "reward"] = "loss"
    kl_estimator: KLEstimator = "k3"  # k3+: value of k3, gradient of k2; full: whole vocabulary
    kl_direction: Literal["reverse", "forward"] = "reverse"  # reverse: KL(policy || reference); forward: with full only
    kl_importance_weighted: bool = False  # KL loss times the token ratio: unbiased off-policy (arXiv:2512.02556)
    kl_target: PositiveFloat | None = None  # sequence KL that kl_coef is steered to (arXiv:1909.08593); null: none
    kl_horizon: PositiveInt = 10_000  # responses over which kl_coef is steered

    # exploration and trust

    entropy_coef: NonNegativeFloat = 0.0  # weight of the full-vocabulary entropy, as a bonus
    target_kl: PositiveFloat | None = None  # a batch's updates end once KL(old || new), k3, exceeds 1.5 times this

    # which responses count

    dynamic_sampling: bool = False  # draw prompts until all groups have right and wrong answers (DAPO)
    max_rounds: PositiveInt = 4  # dynamic sampling: rounds, after which groups of one kind fill the batch
    keep: Literal["all", "correct"] = "all"  # correct: only right responses count (RAFT)
    mask_truncated: bool = False  # leave responses that ran into the length limit out of the loss (DAPO's filtering)

    # trainer against sampler

    correction: Correction = "none"  # see algos/pieces/correction.py
    correction_low: NonNegativeFloat = 0.5  # masks: weights below are dropped
    correction_high: float = 2.0  # masks: weights above are dropped; truncation: they are cut to this

    @field_validator("keep", mode="before")
    @classmethod
    def _mixed_groups_has_a_name(cls, keep):
        if keep == "mixed_groups":
            raise ValueError("'mixed_groups' is a setting of its own: write dynamic_sampling: true")
        return keep

    def __post_init__(self):
        if self.baseline == "critic" and not hasattr(self, "gae_lambda"):
            raise ValueError(
                "baseline critic is GAE, which needs a critic: choose an algorithm that has one, such as ppo"
            )
        if self.baseline != "critic" and hasattr(self, "gae_lambda"):
            raise ValueError(
                f"GAE needs a critic, got baseline {self.baseline}: without one choose reinforce_pp or grpo"
            )
        if self.baseline == "critic" and self.scale not in ("none", "whiten", "whiten_minibatch"):
            raise ValueError(
                f"baseline critic gives one advantage per token: scale must be none or whiten, got {self.scale}"
            )
        if self.per_response and self.per_token_advantages:
            raise ValueError(
                f"{self.per_response} is one number per response, so it needs one advantage per response, got a "
                f"per-token one (baseline {self.baseline}, scale {self.scale}, credit {self.credit}); "
                "use ratio sequence_token"
            )
        lengths_weigh = self.ratio == "sequence_token" and self.aggregation == "seq-mean-token-sum"  # LUSPO
        if self.ratio.startswith("sequence") and self.aggregation != "seq-mean-token-mean" and not lengths_weigh:
            raise ValueError(
                f"ratio {self.ratio} with aggregation {self.aggregation} weighs a response's one ratio by tokens; "
                "use seq-mean-token-mean"
            )
        if self.per_response and self.correction.startswith("token"):
            raise ValueError(
                f"correction {self.correction} weighs tokens, but {self.per_response} is one number per response; "
                "use sequence_truncate or sequence_mask"
            )
        if self.kl_direction == "forward" and self.kl_estimator != "full":
            raise ValueError(
                f"kl_direction forward needs kl_estimator full, got {self.kl_estimator}: a sampled token of the "
                "policy cannot estimate it"
            )
        if self.kl_in == "reward" and self.kl_direction == "forward" and self.kl_coef:
            raise ValueError("kl_direction forward belongs into the loss, got kl_in reward")
        if self.kl_in == "reward" and (self.kl_importance_weighted or self.kl_estimator == "k3+"):
            raise ValueError(
                f"kl_in reward carries no gradient: kl_importance_weighted {self.kl_importance_weighted} and "
                f"kl_estimator {self.kl_estimator} need kl_in loss"
            )
        if self.kl_importance_weighted and self.kl_estimator not in ("k1", "k3"):
            raise ValueError(
                f"kl_importance_weighted makes k1 and k3 unbiased off-policy, got kl_estimator {self.kl_estimator}: "
                "full needs no ratio, and with it k2 and k3+ have the gradient of no divergence"
            )
        if self.kl_target is not None and not self.kl_coef:
            raise ValueError(f"kl_target {self.kl_target} steers kl_coef, which is 0: start it above 0")
        if self.correction != "none" and self.correction_high <= self.correction_low:
            raise ValueError(
                f"correction_high must be above correction_low, got {self.correction_high} and {self.correction_low}"
            )

    @property
    def has_critic(self) -> bool:
        return self.baseline == "critic"

    @property
    def per_response(self) -> str:
        """What makes the objective one number per response, (B, 1); empty if it is one per token."""
        return f"ratio {self.ratio}" if self.ratio in ratios.PER_RESPONSE else ""

    @property
    def per_token_advantages(self) -> bool:
        return self.baseline == "critic" or self.credit == "token" or self.scale.startswith("whiten")

    @property
    def needs_reference(self) -> bool:
        return self.kl_coef > 0

    @property
    def needs_full_kl(self) -> bool:
        return self.kl_coef > 0 and self.kl_estimator == "full"

    @property
    def min_group(self) -> int:
        """The smallest number of responses per prompt that the advantages are defined for."""
        grouped = (
            self.baseline in advantage_pieces.GROUP_BASELINES
            or self.scale in advantage_pieces.GROUP_SCALES
            or self.dynamic_sampling
        )
        return 2 if grouped else 1

    def warnings(self, optimizer_steps: int = 1) -> list[str]:
        """What is possible but seldom meant, one sentence each; optimizer_steps per rollout batch."""
        found = []
        if self.kl_coef and self.kl_in == "loss" and self.kl_estimator == "k1" and not self.kl_importance_weighted:
            found.append(
                "k1 as a loss has no expected gradient: it adds noise and no regularization; use k2 or "
                "kl_importance_weighted."
            )
        if self.kl_coef and self.kl_in == "reward" and self.kl_estimator in ("k2", "k3", "full"):
            found.append(f"{self.kl_estimator} in the reward has the gradient of no divergence; use k1.")
        if self.ratio == "none" and optimizer_steps > 1:
            found.append(
                f"ratio none with {optimizer_steps} optimizer steps per rollout batch: all but the first are "
                "off-policy and not corrected."
            )
        if self.ratio != "none" and optimizer_steps == 1:
            found.append("with one optimizer step per rollout batch all ratios are 1: no clipping rule has any effect.")
        spread = {"group_std": "group", "batch_std": "batch"}.get(self.scale)
        centered = advantage_pieces.GROUP_BASELINES + (("batch_mean",) if spread == "batch" else ())
        if spread and self.baseline not in centered:
            found.append(
                f"scale {self.scale} with baseline {self.baseline}: where all rewards of the {spread} are equal, "
                f"what is left of them is divided by std_epsilon, {self.std_epsilon:g}."
            )
        if self.ratio == "product":
            found.append("ratio product explodes or vanishes with length: clipping silences most long responses.")
        return found


def needs_ratio(config) -> None:
    if config.ratio == "none":
        raise ValueError("ratio none: this objective is made of the ratio; choose token, or the algorithm reinforce")


def needs_token_ratio(config, why: str) -> None:
    if config.ratio != "token":
        raise ValueError(f"{why}: ratio must be token, got {config.ratio}")


def policy_loss(
    objective: Objective,
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    hparams: Estimator,
    totals: Totals,
    ref_logprobs: Tensor | None = None,
    sampler_logprobs: Tensor | None = None,
    entropies: Tensor | None = None,
    full_kl: Tensor | None = None,
    selected: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of one micro-batch, and metrics that add up over the micro-batches of an optimizer step.

    objective               how the algorithm joins importance ratio and advantage; see algos.pieces.types.Objective
    logprobs, old_logprobs  (B, T)  log-probability of each sampled token, in nats; old: no grad
    advantages              (B, 1)  one per response, or (B, T) one per token; no grad
    response_mask           (B, T)  bool; values where the mask is False have no effect, not even NaN
    totals                  counts over the whole optimizer step, so that cutting the step into micro-batches leaves
                            the gradient unchanged
    ref_logprobs            (B, T)  under the frozen reference, no grad; needed for a sampled KL in the loss
    sampler_logprobs        (B, T)  as the sampler reported them, no grad; needed for a correction
    entropies, full_kl      (B, T)  over the whole vocabulary, with grad; needed for entropy_coef and kl_estimator full
    selected                (B, T)  bool, of the algorithm's select, if it has one
    A correction weighs all that the objective gives, its own penalty (DRO, KL-Cov, DPPO's drift) included, and not the
    KL and entropy terms that are added here.
    Raises ValueError if advantages is (B,), which would silently broadcast to (B, B), or if an input is missing.
    """
    rows, columns = logprobs.shape
    shapes = [(rows, 1), (rows, columns)] if hparams.per_token_advantages else [(rows, 1)]
    if tuple(advantages.shape) not in shapes:
        raise ValueError(f"advantages must be {' or '.join(map(str, shapes))}, got {tuple(advantages.shape)}")
    inputs: tuple[Any, ...] = (
        logprobs,
        old_logprobs.detach(),
        response_mask,
        ref_logprobs,
        sampler_logprobs,
        entropies,
        full_kl,
        selected,
    )
    if columns == 1:  # add an empty second column, so that from here on one column means one number per response
        inputs = tuple(x if x is None else torch.nn.functional.pad(x, (0, 1)) for x in inputs)
    logprobs, old_logprobs, mask, ref_logprobs, sampler_logprobs, entropies, full_kl, selected = inputs
    advantages, zeros = advantages.detach(), torch.zeros_like(logprobs)
    logprobs = torch.where(mask, logprobs, zeros)
    token_log_ratio = ratios.token(logprobs, old_logprobs, mask)
    if advantages.shape == logprobs.shape:
        advantages = torch.where(mask, advantages, zeros.to(advantages.dtype))
    log_ratio = ratios.LEVELS[hparams.ratio](logprobs, old_logprobs, mask)
    selection = () if selected is None else (selected,)
    value, shares = objective(log_ratio, logprobs, advantages, mask, hparams, *selection)
    metrics = ratio_metrics(token_log_ratio, mask, totals)
    with torch.no_grad():
        metrics |= {name: share_of(x, mask, totals) for name, x in shares.items()}
        if hparams.ratio != "token" and hparams.ratio != "none":
            metrics |= _sequence_metrics(log_ratio.exp(), mask, totals)
    if hparams.correction != "none":
        weights = correction_pieces.weights(old_logprobs, sampler_logprobs, mask, hparams)
        value = value * (weights[:, :1] if value.shape[1] == 1 else weights)
        metrics["correction_weight"] = masked_sum(weights, mask) / totals.response_tokens
    loss = -aggregate(value, mask, hparams.aggregation, totals, hparams.aggregation_length)
    if hparams.kl_coef and hparams.kl_in == "loss":
        kl = kl_loss(hparams, logprobs, ref_logprobs, full_kl, token_log_ratio, mask)
        loss = loss + hparams.kl_coef * aggregate(kl, mask, hparams.aggregation, totals, hparams.aggregation_length)
        metrics["kl_loss"] = masked_sum(kl.detach(), mask) / totals.response_tokens
    if hparams.entropy_coef:
        if entropies is None:
            raise ValueError(f"entropy_coef {hparams.entropy_coef} needs the full-vocabulary entropies, got None")
        entropies = torch.where(mask, entropies, zeros)
        loss = loss - hparams.entropy_coef * aggregate(
            entropies, mask, hparams.aggregation, totals, hparams.aggregation_length
        )
        metrics["entropy_bonus"] = masked_sum(entropies.detach(), mask) / totals.response_tokens
    return loss, metrics


def share_of(x: Tensor, mask: Tensor, totals: Totals) -> Tensor:
    """Mean over tokens of x (B, T), or over responses of x (B, 1), by the totals of the optimizer step."""
    if x.shape[1] == 1:
        return masked_sum(x.float(), mask.any(dim=1, keepdim=True)) / totals.responses
    return masked_sum(x.float(), mask) / totals.response_tokens


def _sequence_metrics(ratio: Tensor, mask: Tensor, totals: Totals) -> dict[str, Tensor]:
    first = ratio[:, :1]  # the ratio is the same for all tokens of a response, and the first token is never padding
    not_empty = mask.any(dim=1, keepdim=True)
    inside = torch.where(not_empty, first, 1.0)
    return {
        "sequence_ratio_mean": masked_sum(first, not_empty) / totals.responses,
        "sequence_ratio_min": inside.min(),
        "sequence_ratio_max": inside.max(),
    }


def changed(hparams: Estimator, from_: Estimator) -> dict[str, tuple]:
    """Hyperparameters in which two estimators differ: name -> (value there, value here)."""
    names = {f.name for f in fields(hparams)} | {f.name for f in fields(from_)}
    pairs = {name: (getattr(from_, name, None), getattr(hparams, name, None)) for name in sorted(names)}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
