"""DPPO, by hand. Probabilities move by [[+0.15, -0.10, +0.10], [-0.12, +0.05]]."""

import pytest
import torch
from golden import close, gradient

from algos import dppo
from algos.pieces.types import Totals

A2 = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)


def run(a, **settings):
    return lambda x: dppo.ALGORITHM.loss(x, a.old, A2, a.mask, dppo.DPPOConfig(**settings), a.totals)


def test_golden_loss_and_gradient(a):
    """At 0.11 the first token of each response is silenced: pushed on in its direction, by more than the limit.

    The second token of response 1 has fallen although A > 0, and counts. -(0.6 + 1.125 - 1.1) / 5, and -rho A / 5.
    """
    settings = {"limit_low": 0.11, "limit_high": 0.11}
    loss, grad = gradient(lambda x: run(a, **settings)(x)[0], a.new)
    assert loss.item() == pytest.approx(-0.125)
    close(grad, [[0.0, -0.12, -0.225], [0.0, 0.22, 0.0]])
    metrics = run(a, **settings)(a.new)[1]
    assert metrics["clip_fraction"].item() == pytest.approx(0.4)
    assert metrics["clip_fraction_low"].item() == metrics["clip_fraction_high"].item() == pytest.approx(0.2)


def test_golden_kl(a):
    """0.5 log(0.5 / 0.65) + 0.5 log(0.5 / 0.35) = 0.0471553 and so on: [[0.0472, 0.0338, 0.0444], [0.0333, 0.0050]].

    Above 0.04 with A > 0 are tokens 1 and 3, above 0.03 with A < 0 token 1: -(0.6 - 1.1) / 5.
    """
    new, old = a.new.exp(), a.old.exp()
    expected = [[0.0471553, 0.0338340, 0.0444030], [0.0332770, 0.0050252, 0.0]]
    close(torch.where(a.mask, dppo.divergence(new, old, "kl"), 0.0), expected)
    assert run(a, divergence="kl", limit_low=0.03, limit_high=0.04)(a.new)[0].item() == pytest.approx(0.1)


def test_a_rare_token_may_grow_tenfold_and_a_likely_one_may_not_lose_a_fifth():
    """0.001 -> 0.01 has ratio 10, 0.99 -> 0.79 has ratio 0.80: PPO clips the first alone, DPPO the second."""
    old, new = torch.tensor([[0.001], [0.99]]).log(), torch.tensor([[0.01], [0.79]]).log()
    mask, totals = torch.ones(2, 1, dtype=torch.bool), Totals(2, 2)
    metrics = dppo.ALGORITHM.loss(new, old, A2.float(), mask, dppo.DPPOConfig(), totals)[1]
    assert (metrics["clip_fraction_high"], metrics["clip_fraction_low"]) == (0, 0.5)


def test_golden_drift_penalty(a):  # 0.1 times the mean of (log rho)^2 = (0.0688350 + 0.2609428 + ...) / 5
    squares = 0.2623643**2 + 0.5108256**2 + 0.1177830**2 + 0.3566749**2 + 0.0953102**2
    loss = run(a, drift_coef=0.1)(a.new)[0] - run(a)(a.new)[0]
    assert loss.item() == pytest.approx(0.1 * squares / 5, abs=1e-6)
