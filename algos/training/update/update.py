"""A rollout batch -> advantages -> losses -> optimizer steps, for the policy and, if there is one, the critic."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from algos.pieces.advantages import per_minibatch
from algos.pieces.algorithm import Algorithm
from algos.pieces.critic import WithCritic
from algos.pieces.estimator import Estimator
from algos.pieces.kl import log_ratio
from algos.pieces.masked import masked_mean
from algos.pieces.types import Batch, Totals
from algos.training.config import RunConfig
from algos.training.models.logprobs import in_micro_batches, policy_outputs, token_logprobs
from algos.training.models.packing import Layout
from algos.training.stage.state import DERIVED
from algos.training.update.batch_metrics import reduce
from algos.training.update.needs import full_kl_in, sampler_gives_old_logprobs
from algos.training.update.optimize import optimizer_step

STOP_FACTOR = 1.5  # the updates on a batch end once the approximate KL exceeds this times target_kl


@dataclass
class Learner:
    """The models that a run trains, with their optimizers and schedulers, and the reference that it compares with."""

    policy: Any
    optimizer: Any
    scheduler: Any
    critic: Any = None  # SeparateCritic or SharedCritic
    critic_optimizer: Any = None
    critic_scheduler: Any = None
    reference: Any = field(default=None, metadata=DERIVED)  # frozen
    behavior: Any = None  # frozen copy of the policy, which samples; None: the policy samples. See sampling/behavior.py
    share_prompts: bool = False  # whether all models take rows in which responses share their prompt

    def layout(self, config: RunConfig) -> Layout:
        """How batches are cut into forward passes: by responses, or by tokens if the settings say how many."""
        responses = config.micro_batch_size if config.micro_batch_tokens is None else None
        return Layout(responses, config.micro_batch_tokens, self.share_prompts)


def prepare(
    batch: Batch, learner: Learner, config: RunConfig, hparams: Estimator, sampled_entropies: Tensor | None = None
) -> tuple[Batch, Tensor]:
    """The batch with old and reference log-probabilities and values; and the policy's entropies (B, T).

    sampled_entropies (B, T), if the sampler reported them, are used where sampler_gives_old_logprobs: the old
    log-probabilities are then the sampler's too, and the policy is not run again. Else they are computed from the
    weights that old_logprobs names: the behavior policy's, if there is one, or the policy's.
    """
    temperature, layout, at_once = config.temperature, learner.layout(config), config.logits_at_once
    in_reward = full_kl_in(hparams, "reward")
    reference = learner.reference if in_reward else None
    old_policy = learner.policy
    if learner.behavior is not None and config.old_logprobs == "sampler":
        old_policy = learner.behavior

    def outputs(part):
        out = policy_outputs(old_policy, part, temperature, True, reference, logits_at_once=at_once)
        full = out.full_kl if in_reward else torch.zeros_like(out.logprobs)
        assert out.entropies is not None and full is not None  # asked for
        return torch.stack((out.logprobs, out.entropies, full), dim=-1)

    def ref_logprobs(part):
        return token_logprobs(learner.reference, part, temperature, logits_at_once=at_once)[0]

    if sampled_entropies is not None and sampler_gives_old_logprobs(config):
        batch, entropies = replace(batch, old_logprobs=batch.sampler_logprobs), sampled_entropies
    else:
        logprobs, entropies, full_kl = in_micro_batches(outputs, batch, layout).unbind(-1)
        batch = replace(batch, old_logprobs=logprobs, full_kl=full_kl if in_reward else None)
    if learner.reference is not None and batch.ref_logprobs is None:
        batch = replace(batch, ref_logprobs=in_micro_batches(ref_logprobs, batch, layout))
    if learner.critic is not None:
        batch = replace(batch, values=in_micro_batches(learner.critic.values, batch, layout))
    return batch, entropies


def with_advantages(batch: Batch, algorithm: Algorithm, hparams: Estimator) -> Batch:
    """The batch with its advantages and, for a critic, its returns."""
    batch = replace(batch, advantages=algorithm.advantages(batch, hparams))
    if isinstance(hparams, WithCritic):
        batch = replace(batch, returns=algorithm.returns(batch, hparams))
    return batch


def kept(hparams: Estimator, truncated: Tensor, correct: Tensor, group_size: int) -> Tensor | None:
    """(B,) True for the responses that count in the losses; None where all do. truncated (B,) bool, correct (B,) 0, 1.

    In dynamic sampling, groups without both right and wrong answers fill up a batch, and do not count: only a length
    penalty could have an effect in them.
    """
    if hparams.keep == "all" and not hparams.mask_truncated and not hparams.dynamic_sampling:
        return None
    keep = torch.ones_like(truncated)
    right = correct.to(truncated.device) == 1
    if hparams.mask_truncated:
        keep = keep & ~truncated
    if hparams.keep == "correct":
        keep = keep & right
    if hparams.dynamic_sampling:
        groups = right.view(-1, group_size)
        mixed = groups.any(dim=1) & ~groups.all(dim=1)
        keep = keep & mixed.repeat_interleave(group_size)
    return keep


def minibatch_rows(responses: int, config: RunConfig, generator: torch.Generator):
    """Row indices of each optimizer step: responses, or prompts with their responses, shuffled anew in every epoch."""
    unit = config.group_size if config.minibatch_of == "prompts" else 1
    inside = torch.arange(unit, device=generator.device)
    for _ in range(config.epochs):
        order = torch.randperm(responses // unit, generator=generator, device=generator.device)
        rows = (order[:, None] * unit + inside).flatten()
        yield from rows.split(responses // config.minibatches)


def update(
    batch: Batch,
    learner: Learner,
    config: RunConfig,
    hparams: Estimator,
    generator: torch.Generator,
    warming_up: bool = False,
) -> list[dict[str, float]]:
    """All optimizer steps on one rollout batch; the metrics of each. warming_up trains the critic alone."""
    steps = []
    for rows in minibatch_rows(len(batch), config, generator):
        minibatch = batch.select(rows)
        assert minibatch.advantages is not None
        minibatch = replace(minibatch, advantages=per_minibatch(minibatch.advantages, minibatch.loss_mask, hparams))
        metrics: dict[str, Any] = dict(accumulate_gradients(minibatch, learner, config, hparams, warming_up))
        check_losses(metrics)
        limit = config.optimizer.max_grad_norm
        if not warming_up:
            norm = optimizer_step(learner.policy, learner.optimizer, learner.scheduler, limit)
            metrics |= {"grad_norm": norm, "grad_clipped": float(limit is not None and norm > limit)}
        if learner.critic is not None:
            metrics["critic_grad_norm"] = optimizer_step(
                learner.critic, learner.critic_optimizer, learner.critic_scheduler, limit
            )
        steps.append({name: float(value) for name, value in metrics.items()})
        if hparams.target_kl is not None and steps[-1].get("approx_kl_k3", 0.0) > STOP_FACTOR * hparams.target_kl:
            break
    return steps


def check_losses(metrics: dict[str, Any]) -> None:
    """Raise FloatingPointError unless the losses are finite: before the weights take a step."""
    for name in ("policy_loss", "value_loss"):
        if name in metrics and not math.isfinite(metrics[name]):
            raise FloatingPointError(
                f"the {name} is {float(metrics[name])}: training diverged; lower the learning rate"
            )


@torch.no_grad()
def kl_after_update(batch: Batch, learner: Learner, config: RunConfig) -> float:
    """KL(old || new) per token, in nats, by k3, over the tokens of a rollout batch that its losses saw."""
    assert batch.old_logprobs is not None
    new = in_micro_batches(
        lambda part: token_logprobs(learner.policy, part, config.temperature, logits_at_once=config.logits_at_once)[0],
        batch,
        learner.layout(config),
    )
    difference = log_ratio(new, batch.old_logprobs, batch.loss_mask)
    return float(masked_mean(torch.expm1(difference) - difference, batch.loss_mask))


def with_selected(minibatch: Batch, learner: Learner, config: RunConfig, hparams: Estimator) -> Batch:
    """The minibatch with the tokens that its algorithm selects, if it does."""
    select = config.algorithm_entry.select
    if select is None:
        return minibatch

    def outputs(part):
        out = policy_outputs(learner.policy, part, config.temperature, True, logits_at_once=config.logits_at_once)
        assert out.entropies is not None  # asked for
        return torch.stack((out.logprobs, out.entropies), dim=-1)

    with torch.no_grad():
        logprobs, entropies = in_micro_batches(outputs, minibatch, learner.layout(config)).unbind(-1)
        return replace(minibatch, selected=select(replace(minibatch, logprobs=logprobs, entropies=entropies), hparams))


def policy_part(
    part: Batch, learner: Learner, config: RunConfig, hparams: Estimator, totals: Totals
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Policy loss of one micro-batch, the states (N, H) that it was made from, and metrics."""
    assert part.old_logprobs is not None and part.advantages is not None
    full = full_kl_in(hparams, "loss")
    outputs = policy_outputs(
        learner.policy,
        part,
        config.temperature,
        entropy=hparams.entropy_coef > 0,
        reference=learner.reference if full else None,
        direction=hparams.kl_direction,
        logits_at_once=config.logits_at_once,
    )
    loss, metrics = config.algorithm_entry.loss(
        outputs.logprobs,
        part.old_logprobs,
        part.advantages,
        part.loss_mask,
        hparams,
        totals,
        ref_logprobs=part.ref_logprobs,
        sampler_logprobs=part.sampler_logprobs,
        entropies=outputs.entropies,
        full_kl=outputs.full_kl,
        selected=part.selected,
    )
    return loss, outputs.states, {"policy_loss": loss.detach(), **metrics}


def value_part(
    part: Batch, learner: Learner, config: RunConfig, hparams: Estimator, totals: Totals, states: Tensor | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Value loss of one micro-batch, and metrics; states of the policy's pass, or None while the critic warms up."""
    assert isinstance(hparams, WithCritic) and part.values is not None and part.returns is not None
    values = learner.critic.values(part, states, frozen=states is None)
    return config.algorithm_entry.value_loss(values, part.values, part.returns, part.loss_mask, hparams, totals)


def accumulate_gradients(
    minibatch: Batch, learner: Learner, config: RunConfig, hparams: Estimator, warming_up: bool = False
) -> dict[str, Tensor]:
    """Add the gradients of one optimizer step, micro-batch by micro-batch; the metrics of the whole step.

    A critic of its own comes after the policy's backward pass, so that the activations of one model are kept at a
    time. A critic on the policy's backbone shares the policy's pass, and both losses go back through it together.
    """
    if not warming_up:
        minibatch = with_selected(minibatch, learner, config, hparams)
    totals = Totals.of(minibatch.loss_mask)
    together = learner.critic is not None and isinstance(hparams, WithCritic) and hparams.critic == "shared"
    parts = []
    for _, part in learner.layout(config).micro_batches(minibatch):
        policy_loss = states = None
        metrics: dict[str, Tensor] = {}
        if not warming_up:
            policy_loss, states, metrics = policy_part(part, learner, config, hparams, totals)
            if not together:
                policy_loss.backward()
                policy_loss, states = None, states.detach()
        if learner.critic is not None:
            value_loss, value_metrics = value_part(part, learner, config, hparams, totals, states)
            (value_loss if policy_loss is None else policy_loss + value_loss).backward()
            metrics |= value_metrics
        parts.append(metrics)
    return {name: reduce(name, [part[name] for part in parts], sum) for name in parts[0]}
