"""SAPO, by hand."""

from dataclasses import replace

import pytest
import torch
from golden import close

from algos import sapo

A2 = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)


def test_golden_gate_weight_and_gradient(a):
    """f = (4 / tau) sigmoid(tau (rho - 1)), weight w = 4 q (1 - q); gradient of the loss -A w rho by token."""
    log_ratio = torch.where(a.mask, a.new - a.old, 0.0).requires_grad_(True)
    value, shares = sapo.gated_objective(log_ratio, a.new, A2, a.mask, sapo.SAPOConfig())
    gates = [[2.2977701, 1.6052494, 2.1248375], [1.6072182, 2.0046701, 0.0]]
    close(torch.where(a.mask, value.detach() * A2, 0.0), gates)
    weights = [[0.9778332, 0.9610430, 0.9961039], [0.9755983, 0.9972488, 0.0]]
    close(torch.where(a.mask, shares["gate_weight"], 0.0), weights)
    (grad,) = torch.autograd.grad(-value[a.mask].sum(), log_ratio)
    close(grad, [[-1.2711832, -0.5766258, -1.1206169], [0.6829188, 1.0969737, 0.0]])


@pytest.mark.parametrize("aggregation, expected", [("seq-mean-token-mean", -0.1016707), ("token-mean", -0.4831937)])
def test_golden_loss(a, aggregation, expected):
    hparams = replace(sapo.ALGORITHM.defaults, aggregation=aggregation)
    loss, metrics = sapo.ALGORITHM.loss(a.new, a.old, A2, a.mask, hparams, a.totals)
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    assert metrics["gate_weight"].item() == pytest.approx(0.9815654, abs=1e-6)  # mean of the five weights
    assert metrics["gate_below_half"] == 0


@pytest.mark.parametrize("name", ["tau_pos", "tau_neg"])
def test_temperatures_of_zero_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be above 0, got 0.0"):
        sapo.SAPOConfig(**{name: 0.0})
