"""VESPO, by hand. W = 1.3 x 0.6 x 1.125 = 0.8775 and 0.7 x 1.1 = 0.77."""

import pytest
import torch
from golden import close, gradient

from algos import vespo

A2 = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)


def run(a, **settings):
    return lambda x: vespo.ALGORITHM.loss(x, a.old, A2, a.mask, vespo.VESPOConfig(**settings), a.totals)


def test_golden_loss_and_gradient(a):
    """phi = 0.8775^2 e^(3 x 0.1225) = 1.1119813, and for A < 0 0.77^3 e^(2 x 0.23) = 0.7231820; -phi A / 5 a token.

    The loss is -(1.1119813 x -2.4332634 - 0.7231820 x -1.8708027) / 5.
    """
    loss, grad = gradient(lambda x: run(a)(x)[0], a.new)
    assert loss.item() == pytest.approx(0.2705625, abs=1e-6)
    close(grad, [[-0.2223963] * 3, [0.1446364, 0.1446364, 0.0]])


def test_weights_are_logged_by_response(a):  # (1.1119813 + 0.7231820) / 2; a power of 6: 0.77^6 e^0.46 = 0.330
    assert run(a)(a.new)[1]["response_weight"].item() == pytest.approx(0.9175817, abs=1e-6)
    assert run(a)(a.new)[1]["response_weight_below_half"] == 0
    assert run(a, power_neg=6.0)(a.new)[1]["response_weight_below_half"] == 0.5


def test_with_power_1_and_no_decay_it_is_the_ratio_of_responses_itself(a):
    settings = {"power_pos": 1.0, "decay_pos": 0.0, "power_neg": 1.0, "decay_neg": 0.0}
    close(gradient(lambda x: run(a, **settings)(x)[0], a.new)[1], [[-0.1755] * 3, [0.154, 0.154, 0.0]])


@pytest.mark.parametrize("far", [-30.0, 30.0])
def test_a_response_far_away_weighs_nothing_and_overflows_nothing(a, far):
    loss, grad = gradient(lambda x: run(a)(x)[0], a.old + far)
    assert loss.abs() < 1e-12 and grad.abs().max() < 1e-12


def test_it_makes_the_ratio_of_responses_itself():
    with pytest.raises(ValueError, match=r"VESPO multiplies the ratios .*: ratio must be token, got"):
        vespo.VESPOConfig(ratio="product")
