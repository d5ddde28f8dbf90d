"""The toy's batches, enumerated or sampled, and the gradient that an algorithm makes of each batch.

Every batch goes through the advantages and the loss of the algorithm's own entry in algos.ALGORITHMS.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement, product
from typing import Any

import torch
from torch import Tensor

from algos.pieces.advantages import per_minibatch
from algos.pieces.algorithm import Algorithm
from algos.pieces.estimator import Estimator
from algos.pieces.kl import kl_full
from algos.pieces.types import Batch, Totals
from evaluation.bias.toy import LENGTH, THINK, Toy


def enumerate_batches(
    toy: Toy, group_size: int, dynamic_sampling: bool, logits: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """All K batches of one group per prompt: prompts (K, P), responses (K, P, G), probabilities (K,).

    Groups that differ only in their order count as one, because no estimator here depends on the order. With dynamic
    sampling, prompt and group are drawn until the group holds right and wrong answers, P times, without a limit on the
    rounds.
    """
    groups = list(combinations_with_replacement(range(len(toy.tokens)), group_size))
    rows = torch.tensor(groups)  # (M, G)
    orders = [math.factorial(group_size) // math.prod(math.factorial(g.count(y)) for y in set(g)) for g in groups]
    chances = torch.tensor(orders) * toy.probabilities(logits)[:, rows].prod(dim=-1)  # (P, M)
    if dynamic_sampling:
        right = toy.correct[:, rows].sum(dim=-1)
        chances = chances.where((right > 0) & (right < group_size), torch.zeros_like(chances))
        chances = chances / chances.sum()
        slots = [[(p, m) for p, m in chances.nonzero().tolist()]] * len(chances)
    else:
        slots = [[(p, m) for m in range(len(groups))] for p in range(len(chances))]
    prompts, chosen = torch.tensor(list(product(*slots))).unbind(-1)  # (K, P) each
    return prompts, rows[chosen], chances[prompts, chosen].prod(dim=-1)


def sample_batches(
    toy: Toy, group_size: int, dynamic_sampling: bool, logits: Tensor, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Prompts (1, P) and responses (1, P, G) of one batch after another, without end."""
    chances = toy.probabilities(logits)
    while True:
        prompts: list[int] = []
        groups: list[Tensor] = []
        while len(prompts) < len(chances):
            p = len(prompts)
            if dynamic_sampling:
                p = int(torch.randint(len(chances), (), generator=generator))
            group = torch.multinomial(chances[p], group_size, replacement=True, generator=generator)
            if not dynamic_sampling or 0 < toy.correct[p, group].sum() < group_size:
                prompts.append(p)
                groups.append(group)
        yield torch.tensor([prompts]), torch.stack(groups)[None]


@dataclass(frozen=True)
class Policies:
    """Logits (P, T, V) of the three policies that a step tells apart; by default all are the toy's."""

    new: Tensor  # whose gradient is estimated
    old: Tensor  # the ratio's denominator
    sampler: Tensor  # where responses come from

    @classmethod
    def of(cls, toy: Toy, old: Tensor | None = None, sampler: Tensor | None = None) -> "Policies":
        old = toy.logits if old is None else old
        return cls(toy.logits, old, old if sampler is None else sampler)


def as_batch(
    toy: Toy, prompts: Tensor, responses: Tensor, hparams: Estimator, policies: Policies, critic: str
) -> Batch:
    """prompts (N,) and responses (N, G) as the trainer's batch. Its padding holds NaN, which must have no effect."""
    group_size = responses.shape[1]
    p, y = prompts.repeat_interleave(group_size), responses.flatten()
    mask = toy.mask[y]

    def cells(table: Tensor) -> Tensor:
        """(P, Y, T), or (P, T) of prefixes -> (N G, T)."""
        return (table[p, y] if table.dim() == 3 else table[p]).where(mask, torch.nan)

    truncated = mask[:, -1] & (toy.tokens[y, -1] == THINK)
    keep = toy.correct[p, y] if hparams.keep == "correct" else torch.ones_like(truncated)
    old = torch.log_softmax(policies.old, dim=-1)
    return Batch(
        sequence_ids=toy.tokens[y],
        prompt_lengths=torch.zeros_like(y),
        response_ids=toy.tokens[y],
        response_mask=mask,
        sampler_logprobs=cells(toy.logprobs(policies.sampler)),
        rewards=toy.rewards[p, y],
        group_size=group_size,
        old_logprobs=cells(toy.logprobs(policies.old)),
        ref_logprobs=cells(toy.logprobs(toy.ref_logits)),
        values=cells(toy.values(critic, policies.old)),
        full_kl=cells(kl_full(old, torch.log_softmax(toy.ref_logits, dim=-1))),
        greedy_rewards=toy.rewards[prompts, toy.greedy(policies.old)[prompts]],
        keep=keep & ~truncated if hparams.mask_truncated else keep,
    )


def rows_of(batch: Batch, start: int, stop: int) -> Batch:
    """Whole groups of a batch, uncut."""
    cut: dict[str, Any] = {name: x[start:stop] for name, x in vars(batch).items() if isinstance(x, Tensor)}
    if batch.greedy_rewards is not None:  # one for each group
        cut["greedy_rewards"] = batch.greedy_rewards[start // batch.group_size : stop // batch.group_size]
    return replace(batch, **cut)


def advantages_of(algorithm: Algorithm, hparams: Estimator, batch: Batch) -> Tensor:
    return per_minibatch(algorithm.advantages(batch, hparams), batch.loss_mask, hparams)


def with_selected(
    algorithm: Algorithm, hparams: Estimator, toy: Toy, batch: Batch, prompts: Tensor, logits: Tensor
) -> Batch:
    """A batch with the tokens that the algorithm selects, if it does; logits (P, T, V), prompts (N,)."""
    if algorithm.select is None:
        return batch
    everything = torch.log_softmax(logits, dim=-1)[prompts]  # (N, T, V)
    batch = replace(
        batch,
        logprobs=everything.gather(-1, batch.response_ids[..., None]).squeeze(-1),
        entropies=-(everything.exp() * everything).sum(dim=-1),
    )
    return replace(batch, selected=algorithm.select(batch, hparams))


def looks_across_groups(hparams: Estimator) -> bool:
    """Whether an advantage depends on other groups, so that batches must be handed over one by one."""
    across = hparams.baseline == "batch_mean" or hparams.scale in ("batch_std", "whiten", "whiten_minibatch")
    return across or getattr(hparams, "whiten_rewards", False)


def loss_of(
    algorithm: Algorithm,
    hparams: Estimator,
    toy: Toy,
    batch: Batch,
    advantages: Tensor,
    logits: Tensor,
    prompts: Tensor,
    totals: Totals,
) -> Tensor:
    """The algorithm's loss of rows that have one table of logits each, (N, T, V), and prompts (N,)."""
    assert batch.old_logprobs is not None  # as_batch gives them
    logprobs = torch.log_softmax(logits, dim=-1)
    full_kl = None
    if hparams.needs_full_kl and hparams.kl_in == "loss":
        full_kl = kl_full(logprobs, torch.log_softmax(toy.ref_logits, dim=-1)[prompts], hparams.kl_direction)
    return algorithm.loss(
        logprobs.gather(-1, batch.response_ids[..., None]).squeeze(-1),
        batch.old_logprobs,
        advantages,
        batch.loss_mask,
        hparams,
        totals,
        ref_logprobs=batch.ref_logprobs,
        sampler_logprobs=batch.sampler_logprobs,
        entropies=-(logprobs.exp() * logprobs).sum(dim=-1),
        full_kl=full_kl,
        selected=batch.selected,
    )[0]


def gradients(
    algorithm: Algorithm,
    hparams: Estimator,
    toy: Toy,
    prompts: Tensor,
    responses: Tensor,
    policies: Policies,
    critic: str = "exact",
) -> Tensor:
    """The direction of the step that each of K batches asks for: minus the gradient of the loss, (K, P, T, V).

    Losses of micro-batches add up if they share the step's totals. So batches of equal totals go through together.
    """
    count, rows = len(prompts), responses[0].numel()
    batch = as_batch(toy, prompts.flatten(), responses.flatten(0, 1), hparams, policies, critic)
    prompt = prompts.flatten().repeat_interleave(batch.group_size)  # (K P G,)
    parts = [rows_of(batch, k * rows, (k + 1) * rows) for k in range(count)]
    if looks_across_groups(hparams):
        advantages = torch.cat([advantages_of(algorithm, hparams, part) for part in parts])
    else:
        advantages = advantages_of(algorithm, hparams, batch)
    if algorithm.select is not None:  # among all tokens of a batch
        given = zip(parts, advantages.split(rows), prompt.split(rows), strict=True)
        chosen = [
            with_selected(algorithm, hparams, toy, replace(part, advantages=a), p, policies.new) for part, a, p in given
        ]
        batch = replace(batch, selected=torch.cat([part.selected for part in chosen if part.selected is not None]))
    number = torch.arange(count).repeat_interleave(rows)
    mask = batch.loss_mask.view(count, rows, LENGTH)
    counts = torch.stack((mask.any(dim=-1).sum(dim=1), mask.sum(dim=(1, 2))), dim=-1).clamp(min=1)  # Totals.of, each
    found = torch.zeros(count, *policies.new.shape, dtype=policies.new.dtype)
    for pair in counts.unique(dim=0):
        inside = (counts == pair).all(dim=-1)[number].nonzero().squeeze(-1)
        leaf = policies.new[prompt[inside]].requires_grad_(True)
        cut: dict[str, Any] = {
            name: x[inside] for name, x in vars(batch).items() if isinstance(x, Tensor) and name != "greedy_rewards"
        }
        part, totals = replace(batch, **cut), Totals(*pair.tolist())
        loss = loss_of(algorithm, hparams, toy, part, advantages[inside], leaf, prompt[inside], totals)
        found.index_put_((number[inside], prompt[inside]), -torch.autograd.grad(loss, leaf)[0], accumulate=True)
    return found


def sampled_gradients(
    algorithm: Algorithm,
    hparams: Estimator,
    toy: Toy,
    group_size: int,
    count: int,
    generator: torch.Generator,
    critic: str = "exact",
) -> Tensor:
    """On-policy batches sampled and differentiated one at a time, with respect to the policy's own logits."""
    policies, found = Policies.of(toy), []
    batches = sample_batches(toy, group_size, hparams.dynamic_sampling, policies.sampler, generator)
    for _, (prompts, responses) in zip(range(count), batches, strict=False):
        batch = as_batch(toy, prompts[0], responses[0], hparams, policies, critic)
        advantages = advantages_of(algorithm, hparams, batch)
        prompt = prompts[0].repeat_interleave(group_size)
        batch = replace(batch, advantages=advantages)
        batch = with_selected(algorithm, hparams, toy, batch, prompt, policies.new)
        leaf = policies.new.clone().requires_grad_(True)
        totals = Totals.of(batch.loss_mask)
        loss = loss_of(algorithm, hparams, toy, batch, advantages, leaf[prompt], prompt, totals)
        found.append(-torch.autograd.grad(loss, leaf)[0])
    return torch.stack(found)
