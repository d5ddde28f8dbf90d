"""The levels of the importance ratio, on Fixture A."""

import pytest
import torch
from golden import close

from algos.pieces import ratios
from algos.pieces.diagnostics import ratio_metrics


def test_golden_token_ratios(a):
    close(ratios.token(a.new, a.old, a.mask), [[0.2623643, -0.5108256, 0.1177830], [-0.3566749, 0.0953102, 0.0]])
    close(ratios.token(a.new, a.old, a.mask).exp(), [[1.3, 0.6, 1.125], [0.7, 1.1, 1.0]])
    assert ratios.LEVELS["none"] is ratios.token  # only for its diagnostics


def test_golden_sequence_ratio(a):  # cube root of 1.3 x 0.6 x 1.125 = 0.8775, square root of 0.7 x 1.1 = 0.77
    close(ratios.sequence(a.new, a.old, a.mask).exp(), [[0.9573756], [0.8774964]])
    close(ratios.product(a.new, a.old, a.mask).exp(), [[0.8775], [0.77]])


def test_the_sequence_ratio_of_a_long_response_stays_on_scale_and_the_product_does_not():
    log_ratio = torch.full((1, 1000), 1.001, dtype=torch.float64).log()
    old, mask = torch.zeros_like(log_ratio), torch.ones(1, 1000, dtype=torch.bool)
    assert ratios.sequence(log_ratio, old, mask).exp().item() == pytest.approx(1.001, abs=1e-9)
    assert ratios.product(log_ratio, old, mask).exp().item() == pytest.approx(2.7169239, abs=1e-6)  # 1.001^1000


@pytest.mark.parametrize("each, total", [(15.0, 20.0), (-15.0, -20.0), (9.0, 18.0), (-9.0, -18.0)])
def test_the_products_log_ratio_ends_at_twenty(each, total):  # two tokens of 15 are 30: exp(30) is 1e13
    log_ratio, mask = torch.full((1, 2), each), torch.ones(1, 2, dtype=torch.bool)
    assert ratios.product(log_ratio, torch.zeros(1, 2), mask).item() == total


def test_what_is_logged_of_the_ratios_carries_no_gradient(a):
    log_ratio = ratios.token(a.new, a.old, a.mask).requires_grad_(True)
    assert not any(value.requires_grad for value in ratio_metrics(log_ratio, a.mask, a.totals).values())


def test_a_sequence_tokens_value_is_the_responses_and_its_gradient_its_own(a):
    """s_it = sg(s_i) pi / sg(pi): d s_it / d log pi_it = s_i; with s_i itself every token would get s_i / T_i."""
    logprobs = a.new.clone().requires_grad_(True)
    ratio = ratios.sequence_token(logprobs, a.old, a.mask).exp()
    s = torch.tensor([[0.9573756] * 3, [0.8774964, 0.8774964, 0.0]])
    close(ratio.detach()[a.mask], s[a.mask])
    weights = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 0.0]], dtype=torch.float64)
    (grad,) = torch.autograd.grad((weights * ratio)[a.mask].sum(), logprobs)
    close(grad, weights * s)


@pytest.mark.parametrize("level", ["token", "sequence", "sequence_token", "product"])
def test_ratios_stay_finite(level):
    far = torch.full((1, 3), -500.0)
    mask = torch.ones(1, 3, dtype=torch.bool)
    for new, old in ((far, 0 * far), (0 * far, far)):
        ratio = ratios.LEVELS[level](new, old, mask).exp()
        assert torch.isfinite(ratio).all() and (ratio > 0).all()
