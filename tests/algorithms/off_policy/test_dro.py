"""DRO, by hand. Log-ratios of the responses: log 0.8775 = -0.1306783 and log 0.77 = -0.2613648."""

import pytest
import torch
from golden import close, gradient

from algos import dro

A2 = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)


def run(a, drift_coef):
    hparams = dro.DROConfig(drift_coef=drift_coef)
    return lambda x: dro.ALGORITHM.loss(x, a.old, A2, a.mask, hparams, a.totals)


def test_golden_loss_and_gradient(a):
    """(2.4332634 - 1.8708027) / 2 + 0.1 / 2 (0.0170768 + 0.0683115) / 2; each token's -(A - 0.1 log-ratio) / 2."""
    loss, grad = gradient(lambda x: run(a, 0.1)(x)[0], a.new)
    assert loss.item() == pytest.approx(0.2833651, abs=1e-6)
    close(grad, [[-0.5065339] * 3, [0.4869318, 0.4869318, 0.0]])
    assert run(a, 0.1)(a.new)[1]["response_drift"].item() == pytest.approx(0.1960215, abs=1e-6)


def test_the_penalty_vanishes_where_the_advantage_is_tau_times_the_log_ratio(a):
    """The best policy under the penalty: r - mean = tau log(pi / pi_old), here with tau = 1 and A = the log-ratios."""
    advantages = torch.tensor([[-0.1306783], [-0.2613648]], dtype=torch.float64)
    hparams = dro.DROConfig(drift_coef=1.0)
    grad = gradient(lambda x: dro.ALGORITHM.loss(x, a.old, advantages, a.mask, hparams, a.totals)[0], a.new)[1]
    close(grad, torch.zeros(2, 3))


def test_without_a_penalty_it_is_reinforce(a):
    close(gradient(lambda x: run(a, 0.0)(x)[0], a.new)[1], [[-0.5] * 3, [0.5, 0.5, 0.0]])
