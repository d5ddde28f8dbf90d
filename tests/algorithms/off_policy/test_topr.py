"""TOPR, by hand. W = 1.3 x 0.6 x 1.125 = 0.8775 and 0.7 x 1.1 = 0.77."""

import pytest
import torch
from golden import close, gradient

from algos import topr


def run(a, *advantages):
    given = torch.tensor(advantages, dtype=torch.float64)[:, None]
    return lambda x: topr.ALGORITHM.loss(x, a.old, given, a.mask, topr.TOPRConfig(), a.totals)


def test_golden_loss_and_gradient(a):
    """Right: weight 1; wrong: 0.77. (2.4332634 - 0.77 x 1.8708027) / 2, and -w A / 2 for each token."""
    loss, grad = gradient(lambda x: run(a, 1.0, -1.0)(x)[0], a.new)
    assert loss.item() == pytest.approx(0.4963727, abs=1e-6)
    close(grad, [[-0.5] * 3, [0.385, 0.385, 0.0]])
    assert run(a, 1.0, -1.0)(a.new)[1]["response_weight"].item() == pytest.approx(0.885)  # (1 + 0.77) / 2


def test_a_wrong_response_that_has_become_likelier_weighs_1(a):  # W = 1 / 0.8775 and 1 / 0.77, cut
    a.old, a.new = a.new, a.old
    close(gradient(lambda x: run(a, -1.0, -1.0)(x)[0], a.new)[1], [[0.5] * 3, [0.5, 0.5, 0.0]])


def test_a_wrong_response_far_below_weighs_nothing_and_a_right_one_keeps_its_weight(a):
    _, grad = gradient(lambda x: run(a, 1.0, -1.0)(x)[0], a.old - 15.0)
    close(grad, [[-0.5] * 3, [0.0] * 3])
    assert run(a, 1.0, -1.0)(a.old - 15.0)[1]["response_weight_below_half"] == 0.5
