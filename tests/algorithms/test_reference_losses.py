"""PPO, GRPO and GSPO written plainly give the same numbers as their entries made of pieces."""

from dataclasses import replace

import pytest
import torch

from algos import grpo, gspo, ppo
from algos.pieces.types import Batch, Totals

FILES = pytest.mark.parametrize("file", [ppo, grpo, gspo], ids=lambda file: file.__name__.removeprefix("algos."))
NAN = float("nan")
EVERY_KIND = {  # lengths of 8 responses in 5 columns; a response of 5 tokens was cut off by the length limit
    "ragged": (1, 4, 2, 3, 5, 2, 4, 3),
    "truncated": (5,) * 8,
    "one token each": (1,) * 8,
    "one token or truncated": (1, 5, 5, 1, 1, 1, 5, 5),
}


def random_batch(lengths, group_size: int, seed: int, spread: float, rewards: str) -> tuple[Batch, torch.Tensor]:
    """A batch in float64 with NaN on its padding, and log-probabilities of a policy `spread` nats away."""
    generator = torch.Generator().manual_seed(seed)
    rows, width = len(lengths), 5

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    given = {
        "random": normal(rows),
        "right or wrong": (normal(rows) > 0).double(),
        "one group of equal rewards": torch.where(torch.arange(rows) < group_size, 1.0, normal(rows)),
        "all equal": torch.full((rows,), 0.1, dtype=torch.float64),
    }[rewards]
    old = -normal(rows, width).abs()
    logprobs = torch.where(mask, old + spread * normal(rows, width), NAN)
    batch = Batch(
        sequence_ids=torch.zeros(rows, width, dtype=torch.long),
        prompt_lengths=torch.zeros(rows, dtype=torch.long),
        response_ids=torch.zeros(rows, width, dtype=torch.long),
        response_mask=mask,
        sampler_logprobs=torch.where(mask, old, NAN),
        rewards=given,
        group_size=group_size,
        old_logprobs=torch.where(mask, old, NAN),
        values=torch.where(mask, normal(rows, width), NAN),
    )
    return batch, logprobs


def both_losses(file, batch: Batch, logprobs: torch.Tensor, **changes):
    """(loss, gradient) of the entry made of pieces, and of reference_loss."""
    entry, hparams = file.ALGORITHM, replace(file.ALGORITHM.defaults, **changes)
    found = []
    for written in ("pieces", "plain"):
        leaf = logprobs.clone().requires_grad_(True)
        if written == "plain":
            given = (batch.old_logprobs, batch.response_mask, batch.rewards, batch.values, batch.group_size)
            loss = file.reference_loss(leaf, *given, **changes)
        else:
            advantages, totals = entry.advantages(batch, hparams), Totals.of(batch.response_mask)
            loss, _ = entry.loss(leaf, batch.old_logprobs, advantages, batch.response_mask, hparams, totals)
        loss.backward()
        found.append((loss.detach(), leaf.grad))
    return found


def assert_same(pieces, plain):
    for x, y in zip(plain, pieces, strict=True):
        assert x.isfinite().all()
        torch.testing.assert_close(x, y, atol=1e-10, rtol=1e-9)


@FILES
@pytest.mark.parametrize("kind", EVERY_KIND)
@pytest.mark.parametrize("rewards", ["random", "right or wrong", "one group of equal rewards", "all equal"])
def test_both_give_one_loss_and_one_gradient(file, kind, rewards):
    for seed in range(12):
        group_size, spread = (2, 4, 8)[seed % 3], (0.0, 3e-4, 0.01, 0.5)[seed % 4]
        batch, logprobs = random_batch(EVERY_KIND[kind], group_size, seed, spread, rewards)
        pieces, plain = both_losses(file, batch, logprobs)
        assert_same(pieces, plain)
        if rewards == "random" and spread < 0.1 and file is not gspo:  # without active clips, so there is a gradient
            assert pieces[1].abs().max() > 1e-3


@FILES
def test_both_give_one_loss_and_one_gradient_with_other_clip_ranges(file):
    for seed, (low, high) in enumerate([(0.0, 0.0), (0.05, 0.3), (0.3, 0.05), (1.0, 10.0)]):
        batch, logprobs = random_batch(EVERY_KIND["ragged"], 4, seed, 0.3, "random")
        assert_same(*both_losses(file, batch, logprobs, clip_low=low, clip_high=high))


@pytest.mark.parametrize("gae_lambda", [0.0, 0.5, 1.0])
def test_both_give_one_loss_and_one_gradient_with_another_lambda(gae_lambda):
    batch, logprobs = random_batch(EVERY_KIND["ragged"], 4, 0, 0.3, "random")
    assert_same(*both_losses(ppo, batch, logprobs, gae_lambda=gae_lambda))


@FILES
def test_the_default_hyperparameters_are_those_of_the_entry(file):
    names = file.reference_loss.__defaults__
    hparams = file.ALGORITHM.defaults
    expected = (hparams.clip_low, hparams.clip_high, *((hparams.gae_lambda,) if file is ppo else ()))
    assert names == expected


def test_the_three_differ_on_one_batch():  # else the comparison above would say little
    batch, logprobs = random_batch(EVERY_KIND["ragged"], 4, 0, 0.3, "random")
    losses = [both_losses(file, batch, logprobs)[1][0] for file in (ppo, grpo, gspo)]
    assert min(abs(a - b) for i, a in enumerate(losses) for b in losses[:i]) > 1e-4
