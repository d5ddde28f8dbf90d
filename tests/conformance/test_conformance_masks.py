"""Every algorithm: padding has no effect, micro-batches add up, empty and one-token responses are handled."""

from types import SimpleNamespace

import pytest
import torch
from cases import INF, LEAVES, Made, batch, every, fill, loss_mask, make, moves, rows_of, same, step, with_advantages
from golden import NAN
from torch import Tensor

from algos.pieces.types import Totals
from algos.training.update.batch_metrics import reduce


@every
@pytest.mark.parametrize("padding", [NAN, INF, -INF, -7.3])
def test_padding_has_no_effect(case, padding):
    b = make(case.hparams)
    clean = with_advantages(case, fill(b, b.response_mask, 0.0))
    dirty = with_advantages(case, fill(b, b.response_mask, padding))
    for name in ("advantages", "returns"):
        for x, y in zip(getattr(clean, name), getattr(dirty, name), strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=0)
    expected = step(case, clean)
    same(step(case, fill(dirty, loss_mask(b), padding)), expected)
    assert moves(expected) and (expected.gradients["logprobs"][~loss_mask(b)] == 0).all()


@every
def test_the_order_of_responses_has_no_effect(case):
    b = batch(case)
    order = torch.randperm(len(b.rewards), generator=torch.Generator().manual_seed(1))
    expected = step(case, b)
    expected.gradients = {name: x[order] for name, x in expected.gradients.items()}
    same(step(case, rows_of(b, order)), expected)


@every
@pytest.mark.parametrize("sizes", [(6, 6), (4, 4, 4), (1, 7, 4), (3, 9), (1,) * 12], ids=str)
def test_micro_batches_add_up_to_the_step(case, sizes):  # sorted by length: the first ones have one column
    b = batch(case)
    b = rows_of(b, b.response_mask.sum(dim=1).argsort(stable=True))
    expected, totals = step(case, b), Totals.of(loss_mask(b))
    parts = [step(case, rows_of(b, rows), totals) for rows in torch.arange(len(b.rewards)).split(list(sizes))]
    numbers = {name: reduce(name, [part.numbers[name] for part in parts], sum) for name in expected.numbers}

    def joined(name):
        pad = torch.nn.functional.pad
        return torch.cat([pad(p.gradients[name], (0, 5 - p.gradients[name].shape[1])) for p in parts])

    same(SimpleNamespace(numbers=numbers, gradients={name: joined(name) for name in LEAVES}), expected)


@every
@pytest.mark.parametrize("extra", ["padding column", "empty response", "response that is not kept"])
def test_what_is_masked_is_never_counted(case, extra):
    b = batch(case)
    more = Made(**vars(b))
    for name, x in vars(b).items():
        if not isinstance(x, Tensor) or name == "greedy_rewards":
            continue
        empty = False if x.dtype == torch.bool else NAN
        if extra != "padding column":
            new = torch.full_like(x[:1], empty)
            if extra == "response that is not kept" and name == "response_mask":
                new = torch.ones_like(new)
            setattr(more, name, torch.cat((x, new)))
        elif x.shape == b.response_mask.shape:
            setattr(more, name, torch.cat((x, torch.full_like(x[:, :1], empty)), dim=1))
    if extra == "empty response":
        more.keep[-1] = True
    assert Totals.of(loss_mask(more)) == Totals.of(loss_mask(b))
    got = step(case, more)
    for name, x in got.gradients.items():
        assert (x[len(b.rewards) :] == 0).all() and (x[:, 5:] == 0).all()
        got.gradients[name] = x[: len(b.rewards), :5]
    same(got, step(case, b))


@every
def test_one_token_responses_need_no_second_column(case):
    lengths = (1,) * 8
    wide = make(case.hparams, lengths, width=3)
    narrow = rows_of(wide, torch.arange(8))
    narrow.greedy_rewards = wide.greedy_rewards
    assert narrow.response_mask.shape == (8, 1)
    got, expected = (step(case, with_advantages(case, b)) for b in (narrow, wide))
    expected.gradients = {name: x[:, :1] for name, x in expected.gradients.items()}
    same(got, expected)
    assert moves(got)


@every
@pytest.mark.parametrize("lengths", [(0, 3, 2, 5, 1, 2, 0, 0), (0, 0, 0, 0, 2, 3, 1, 2), (0,) * 8], ids=str)
def test_empty_responses_are_finite_and_have_no_gradient(case, lengths):
    b = batch(case, lengths=lengths)
    assert b.advantages.isfinite().all()
    got = step(case, fill(b, loss_mask(b), NAN))
    assert all(x.isfinite() for x in got.numbers.values())
    for x in got.gradients.values():
        assert x.isfinite().all() and (x[~loss_mask(b)] == 0).all()
    if not any(lengths):
        assert got.numbers["loss"] == 0


@every
def test_single_precision_agrees_with_double(case):
    b, single = batch(case), make(case.hparams)
    for name, x in vars(single).items():
        if isinstance(x, Tensor) and x.dtype == torch.float64:
            setattr(single, name, x.float())
    got = step(case, with_advantages(case, single))
    assert got.numbers["loss"].dtype == torch.float32
    same(got, step(case, b), atol=2e-5, rtol=1e-4)
