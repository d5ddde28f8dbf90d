"""What weighs how much in an optimizer step."""

import pytest
import torch
from golden import close, gradient

from algos import grpo
from algos.pieces.aggregation import MODES, aggregate
from algos.pieces.types import Totals

A2 = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    "mode, length, loss, expected",
    [  # of tokens [[-1.2, -0.6, -1.125], [0.8, 1.1]], whose sums are -2.925 and 1.9
        # (-2.925 / 3 + 1.9 / 2) / 2
        ("seq-mean-token-mean", None, -0.0125, [[0.0, -0.1, -0.1875], [0.0, 0.275, 0.0]]),
        ("token-mean", None, -0.205, [[0.0, -0.12, -0.225], [0.0, 0.22, 0.0]]),  # -1.025 / 5
        ("seq-mean-token-sum", None, -0.5125, [[0.0, -0.3, -0.5625], [0.0, 0.55, 0.0]]),  # -1.025 / 2
        ("seq-mean-token-sum-norm", 4, -0.128125, [[0.0, -0.075, -0.140625], [0.0, 0.1375, 0.0]]),  # and / 4
    ],
)
def test_golden_loss_and_gradient_of_fixture_a(a, mode, length, loss, expected):
    hparams = grpo.GRPOConfig(aggregation=mode, aggregation_length=length)
    value, grad = gradient(lambda x: grpo.ALGORITHM.loss(x, a.old, A2, a.mask, hparams, a.totals)[0], a.new)
    assert value.item() == pytest.approx(loss, abs=1e-9)
    close(grad, expected, atol=1e-9)


@pytest.mark.parametrize(
    "mode, short, long",
    [
        ("seq-mean-token-mean", 0.25, 0.0625),  # 1 / (2 x 2), 1 / (2 x 8)
        ("token-mean", 0.1, 0.1),  # 1 / 10
        ("seq-mean-token-sum", 0.5, 0.5),  # 1 / 2
        ("seq-mean-token-sum-norm", 0.0625, 0.0625),  # 1 / (2 x 8)
    ],
)
def test_golden_token_weights_of_a_short_and_a_long_response(mode, short, long):
    mask = torch.arange(8) < torch.tensor([[2], [8]])
    x = torch.full((2, 8), float("nan")).masked_fill(mask, 1.0).requires_grad_(True)
    aggregate(x, mask, mode, Totals.of(mask), 8).backward()
    close(x.grad, mask * torch.tensor([[short], [long]]))


@pytest.mark.parametrize("mode", ["seq-mean-token-mean", "token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"])
def test_micro_batches_add_up_because_the_steps_totals_divide(a, mode):
    x = torch.tensor([[-1.2, -0.6, -1.125], [0.8, 1.1, float("nan")]])
    whole = aggregate(x, a.mask, mode, a.totals, 4)
    parts = sum(aggregate(x[r : r + 1], a.mask[r : r + 1], mode, a.totals, 4) for r in range(2))
    torch.testing.assert_close(parts, whole)


def test_averaging_the_token_means_of_micro_batches_would_be_another_objective(a):  # -0.0125 instead of -0.205
    x = torch.tensor([[-1.2, -0.6, -1.125], [0.8, 1.1, float("nan")]])
    rows = [(x[r : r + 1], a.mask[r : r + 1]) for r in range(2)]
    wrong = sum(aggregate(part, mask, "token-mean", Totals.of(mask)) for part, mask in rows) / 2
    assert wrong.item() == pytest.approx(-0.0125, abs=1e-6)
    assert aggregate(x, a.mask, "token-mean", a.totals).item() == pytest.approx(-0.205, abs=1e-6)


@pytest.mark.parametrize("mode", ["seq-mean-token-mean", "token-mean", "seq-mean-token-sum"])
def test_one_number_per_response_is_averaged_over_responses_whatever_the_mode(mode):
    mask = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
    x = torch.tensor([[2.0], [4.0], [float("nan")]])  # the last response is empty and counts nothing
    assert aggregate(x, mask, mode, Totals.of(mask)).item() == 3.0


def test_an_empty_response_counts_in_no_divisor(a):
    mask = torch.cat([a.mask, torch.zeros(1, 3, dtype=torch.bool)])
    x = torch.ones(3, 3).masked_fill(~mask, float("nan"))
    for mode in ("seq-mean-token-mean", "token-mean"):
        assert aggregate(x, mask, mode, Totals.of(mask)).item() == pytest.approx(1.0)


def test_a_missing_length_and_an_unknown_mode_are_refused(a):
    with pytest.raises(ValueError, match="needs aggregation_length, got None"):
        aggregate(a.new, a.mask, "seq-mean-token-sum-norm", a.totals)
    with pytest.raises(ValueError, match="got 'mean'"):
        aggregate(a.new, a.mask, "mean", a.totals)


def test_one_number_per_response_of_two_tokens_is_averaged_over_responses():  # (1 + 3) / 2, whatever the mode
    mask = torch.tensor([[True, True], [True, False]])
    for mode in MODES:
        assert aggregate(torch.tensor([[1.0], [3.0]]), mask, mode, Totals.of(mask), 5).item() == 2.0
