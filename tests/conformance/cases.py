"""The cases that every conformance test runs on: each algorithm of the table, one batch, one step, one comparison.

A case is an algorithm with its defaults; or with a sampled KL times the ratio, an entropy bonus and a correction on
top; or with the exact KL and another correction. An algorithm that is added to the table becomes a case by its line
there.
"""

import os
from dataclasses import dataclass, replace
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from algos import ALGORITHMS, clip_cov, describe, grpo, ppo_penalty
from algos.pieces import advantages as pieces
from algos.pieces.algorithm import Algorithm
from algos.pieces.estimator import Estimator
from algos.pieces.types import Totals

INF = float("inf")


@dataclass(frozen=True)
class Case:
    name: str
    algorithm: Algorithm
    hparams: Estimator


# What a user might add: a hparams of its own with an objective, and advantages of its own.


@dataclass(frozen=True)
class TemperedConfig(Estimator):
    temper: float = 0.5


def tempered_objective(log_ratio, logprobs, advantages, mask, hparams):
    """ratio^temper / temper A: (B, T)."""
    return (hparams.temper * log_ratio).exp() / hparams.temper * advantages, {"ratio_above": log_ratio > 0}


def sign_advantages(batch, hparams):
    """The sign of what the response's reward is above its group's mean."""
    return pieces.center(batch.rewards.view(-1, batch.group_size), hparams.baseline).sign().view(-1, 1)


ADDED = {
    "added_objective": Algorithm(TemperedConfig(), tempered_objective, lambda c: "rho^t A", "own", "here", "grpo"),
    "added_advantages": replace(grpo.ALGORITHM, advantages=sign_advantages, relative="grpo"),
}
VARIANTS = {
    "defaults": {},
    "kl": {
        "kl_coef": 0.05,
        "kl_in": "loss",
        "kl_estimator": "k3",
        "kl_importance_weighted": True,
        "entropy_coef": 0.02,
        "correction": "sequence_truncate",
    },
    "full": {
        "kl_coef": 0.1,
        "kl_in": "loss",
        "kl_estimator": "full",
        "kl_importance_weighted": False,
        "correction": "sequence_mask",
    },
}
OWN = os.environ.get("CONFORMANCE_OF")  # of `python -m algos check NAME`
ENTRIES = {OWN: ALGORITHMS[OWN]} if OWN else {**ALGORITHMS, **ADDED}


def case_of(name: str, algorithm: Algorithm, **settings) -> Case:
    return Case(name, algorithm, describe.with_length(replace(algorithm.defaults, **settings), 5))


REFUSED: set[tuple[str, str]] = set()  # (algorithm, variant): what an algorithm refuses; one that is not here fails


def cases():
    for name, variant in product(ENTRIES, VARIANTS):
        if (name, variant) in REFUSED:
            with pytest.raises(ValueError):
                case_of(name, ENTRIES[name], **VARIANTS[variant])
        else:
            yield pytest.param(case_of(name, ENTRIES[name], **VARIANTS[variant]), id=f"{name}-{variant}")


every = pytest.mark.parametrize("case", list(cases()))
every_default = pytest.mark.parametrize(
    "case", [pytest.param(case_of(name, entry), id=name) for name, entry in ENTRIES.items()]
)

# ---- one batch that has what any algorithm needs, one step, one comparison

LENGTHS = (1, 4, 5, 2, 3, 1, 5, 4, 2, 5, 3, 1)
LEAVES = ("logprobs", "entropies", "full_kl", "new_values")  # what carries gradient
PER_TOKEN = (*LEAVES, "old_logprobs", "ref_logprobs", "sampler_logprobs", "values")


class Made(SimpleNamespace):
    """A batch whose tensors a test may replace."""

    selected = None

    @property
    def loss_mask(self) -> Tensor:
        return self.response_mask & self.keep[:, None]


def make(hparams: Estimator, lengths=LENGTHS, group_size: int = 4, width: int = 5, spread: float = 0.3, seed: int = 0):
    """A batch of len(lengths) / group_size prompts. Row 6 is not kept; with keep `correct` no wrong response is.

    spread: standard deviation of the log-ratios, in nats. The sampler is far from the old policy on every other row,
    so that even a narrow range of weights keeps some responses and drops some.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = len(lengths)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    old = -0.3 - normal(rows, width).abs()
    b = Made(
        group_size=group_size,
        response_mask=torch.arange(width) < torch.tensor(lengths)[:, None],
        correct=torch.tensor([1, 0, 1, 0, 0, 1, 1, 0, 1, 0, 0, 1][:rows], dtype=torch.bool),
        old_logprobs=old,
        logprobs=old + spread * normal(rows, width),
        ref_logprobs=old + 0.3 * normal(rows, width),
        sampler_logprobs=old + torch.where(torch.arange(rows) % 2 == 0, 0.3, 0.002)[:, None] * normal(rows, width),
        values=normal(rows, width),
        full_kl=normal(rows, width) ** 2,
        entropies=normal(rows, width) ** 2,
        greedy_rewards=normal(rows // group_size),
    )
    b.new_values = b.values + 0.3 * normal(rows, width)
    b.rewards = b.correct.double() + 0.1 * normal(rows)
    return with_keep(b, hparams)


def with_keep(b, hparams: Estimator):
    b.keep = b.correct.clone() if hparams.keep == "correct" else torch.arange(len(b.rewards)) != 6
    return b


def loss_mask(b) -> Tensor:
    return b.loss_mask


def with_advantages(case: Case, b):
    b.advantages = case.algorithm.advantages(b, case.hparams)
    b.advantages = pieces.per_minibatch(b.advantages, loss_mask(b), case.hparams)
    b.returns = case.algorithm.returns(b, case.hparams) if case.hparams.has_critic else torch.zeros_like(b.values)
    if case.algorithm.select is not None:
        b.selected = case.algorithm.select(b, case.hparams)
    return b


def batch(case: Case, **options):
    return with_advantages(case, make(case.hparams, **options))


def fill(b, mask: Tensor, value: float):
    """`value` wherever mask is False, in all tensors of tokens; in responses of which nothing is left, everywhere."""
    filled = Made(**vars(b))
    for name, x in vars(b).items():
        if name in PER_TOKEN or name in ("advantages", "returns"):
            valid = mask if x.shape == mask.shape else mask.any(dim=1, keepdim=True)
            setattr(filled, name, torch.where(valid, x, value))
    return filled


def rows_of(b, rows):
    """Some rows, and the columns that they use, as the trainer's micro-batches have them."""
    width = max(int(b.response_mask[rows].sum(dim=1).max()), 1)
    chosen = Made(group_size=b.group_size)
    for name, x in vars(b).items():
        if isinstance(x, Tensor) and name != "greedy_rewards":
            setattr(chosen, name, x[rows][:, :width] if x.dim() == 2 and x.shape == b.response_mask.shape else x[rows])
    return chosen


def step(case: Case, b, totals: Totals | None = None, algorithm: Algorithm | None = None):
    """Losses, metrics and the gradient of everything that carries one."""
    algorithm, mask, hparams = algorithm or case.algorithm, loss_mask(b), case.hparams
    totals = totals or Totals.of(mask)
    leaf = {name: getattr(b, name).detach().clone().requires_grad_(True) for name in LEAVES}
    loss, metrics = algorithm.loss(
        leaf["logprobs"],
        b.old_logprobs,
        b.advantages,
        mask,
        hparams,
        totals,
        ref_logprobs=b.ref_logprobs,
        sampler_logprobs=b.sampler_logprobs,
        entropies=leaf["entropies"],
        full_kl=leaf["full_kl"],
        selected=b.selected,
    )
    numbers, total = {"loss": loss.detach(), **metrics}, loss
    if hparams.has_critic:
        value, metrics = algorithm.value_loss(leaf["new_values"], b.values, b.returns, mask, hparams, totals)
        numbers, total = {**numbers, "value": value.detach(), **metrics}, loss + value
    total.backward()
    assert not any(x.requires_grad for x in metrics.values())
    gradients = {name: torch.zeros_like(x) if x.grad is None else x.grad for name, x in leaf.items()}
    return SimpleNamespace(numbers=numbers, gradients=gradients)


def same(got, expected, atol: float = 1e-12, rtol: float = 1e-9):
    assert list(got.numbers) == list(expected.numbers)
    for name, x in got.numbers.items():
        wanted, slack = expected.numbers[name], 1e-6 if x.dtype == torch.float32 else 0.0  # shares are in single
        close = torch.allclose(x.double(), wanted.double(), rtol + slack, atol + slack)
        assert close, f"{name}: {x.item()}, not {wanted.item()}"
    for name, x in got.gradients.items():
        torch.testing.assert_close(x, expected.gradients[name], atol=atol, rtol=rtol, check_dtype=False)


def penalized(case: Case) -> bool:
    """Whether the objective has a penalty on the distance from the old policy: 0 only where the two are one."""
    own = case.algorithm.objective in (ppo_penalty.penalized_objective, clip_cov.kl_cov_objective)
    return own or bool(getattr(case.hparams, "drift_coef", 0.0))


def moves(got) -> bool:
    """Whether the policy's gradient is more than nothing: else a comparison would say nothing."""
    return bool(got.gradients["logprobs"].abs().max() > 1e-4)
