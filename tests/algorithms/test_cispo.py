"""CISPO, by hand."""

import pytest
import torch
from golden import close, gradient

from algos import cispo
from algos.pieces.types import Totals

A2 = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)


def run(a, is_max):
    hparams = cispo.CISPOConfig(is_max=is_max)
    return lambda x: cispo.ALGORITHM.loss(x, a.old, A2, a.mask, hparams, a.totals)


def test_golden_loss_and_gradient(a):
    """Weights min(rho, 1.2) = [[1.2, 0.6, 1.125], [0.7, 1.1]]; gradient -weight A / 5, also for the truncated token."""
    loss, grad = gradient(lambda x: run(a, 1.2)(x)[0], a.new)
    assert loss.item() == pytest.approx(0.0450091, abs=1e-6)
    close(grad, [[-0.24, -0.12, -0.225], [0.14, 0.22, 0.0]])


def test_golden_clip_fraction(a):  # 1.3 alone of five is above 1.2; there is no lower bound
    metrics = run(a, 1.2)(a.new)[1]
    assert metrics["clip_fraction"].item() == metrics["clip_fraction_high"].item() == pytest.approx(0.2)
    assert metrics["clip_fraction_low"] == 0 and run(a, 5.0)(a.new)[1]["clip_fraction"] == 0


@pytest.mark.parametrize("advantage, low, high", [(0.5, 0, 1), (0.0, 0, 0), (-0.5, 1, 0)])
def test_truncated_tokens_are_counted_by_the_sign_of_their_advantage(advantage, low, high):  # 1.5 is above 1.2
    new, one = torch.tensor([[1.5]]).log(), torch.ones(1, 1, dtype=torch.bool)
    hparams, advantages = cispo.CISPOConfig(is_max=1.2), torch.tensor([[advantage]])
    _, metrics = cispo.ALGORITHM.loss(new, torch.zeros(1, 1), advantages, one, hparams, Totals(1, 1))
    assert (metrics["clip_fraction_low"], metrics["clip_fraction_high"]) == (low, high)
    assert metrics["clip_fraction"] == 1


def test_a_ratio_on_the_bound_is_not_truncated(a):  # on-policy all ratios are exactly 1
    assert run(a, 1.0)(a.old)[1]["clip_fraction"] == 0


def test_the_bound_is_that_of_the_ratio_itself():  # 0.2, as PPO's range is written, would be a bound below 1
    with pytest.raises(ValueError, match=r"is_max must be at least 1, got 0\.2"):
        cispo.CISPOConfig(is_max=0.2)
