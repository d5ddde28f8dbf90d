"""The clipped objective by hand: its four cases, and the optional dual and two-sided clip."""

import pytest
import torch
from golden import close, gradient

from algos import grpo
from algos.pieces.clipping import Clipped, clipped_objective
from algos.pieces.types import Totals

ONE = torch.ones(1, 1, dtype=torch.bool)
A2 = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)


def one_token(ratio: float, advantage: float, **settings):
    """Loss and gradient of one token with this ratio and advantage."""
    hparams = grpo.GRPOConfig(**settings)
    new = torch.tensor([[ratio]], dtype=torch.float64).log()
    advantages = torch.tensor([[advantage]], dtype=torch.float64)
    value, grad = gradient(
        lambda x: grpo.ALGORITHM.loss(x, torch.zeros_like(x), advantages, ONE, hparams, Totals(1, 1))[0], new
    )
    return value.item(), grad.item()


@pytest.mark.parametrize(
    "advantage, ratio, loss, slope",
    [
        (2.0, 1.1, -2.2, -2.2),  # A > 0, inside: -A rho, the gradient with respect to log pi is the same
        (2.0, 0.5, -1.0, -1.0),  # A > 0, below the range: pushing it back up is not clipped
        (2.0, 1.5, -2.4, 0.0),  # A > 0, above 1.2: -1.2 A, silenced
        (-2.0, 0.9, 1.8, 1.8),  # A < 0, inside
        (-2.0, 5.0, 10.0, 10.0),  # A < 0, above the range: unbounded as rho grows
        (-2.0, 0.5, 1.6, 0.0),  # A < 0, below 0.8: -0.8 A, silenced
    ],
)
def test_the_cases_of_the_clip(advantage, ratio, loss, slope):
    assert one_token(ratio, advantage) == (pytest.approx(loss), pytest.approx(slope))


@pytest.mark.parametrize("advantage, loss", [(1.0, -1.2), (-1.0, 3.0)])
def test_a_ratio_of_three_is_clipped_to_the_range_only_where_the_advantage_is_positive(advantage, loss):
    assert one_token(3.0, advantage)[0] == pytest.approx(loss)


def test_golden_dual_clip():  # A = -1, rho = 5: loss 5 without, at most 3 with it, and no gradient beyond
    assert one_token(5.0, -1.0) == (pytest.approx(5.0), pytest.approx(5.0))
    assert one_token(5.0, -1.0, dual_clip=3.0) == (pytest.approx(3.0), 0.0)
    assert one_token(2.0, -1.0, dual_clip=3.0) == (pytest.approx(2.0), pytest.approx(2.0))
    for positive in (1.0, 0.5):
        assert one_token(5.0, positive, dual_clip=3.0) == one_token(5.0, positive)


def test_the_two_sided_clip_caps_the_ratio_inside_the_minimum():  # A = -1, rho = 5, cap 4: loss 4, no gradient
    assert one_token(5.0, -1.0, ratio_cap=4.0) == (pytest.approx(4.0), 0.0)
    assert one_token(3.0, -1.0, ratio_cap=4.0) == one_token(3.0, -1.0)
    assert one_token(5.0, 1.0, ratio_cap=4.0) == one_token(5.0, 1.0)


@pytest.mark.parametrize("threshold, loss, masked", [(0.13, -0.4875, 0.5), (0.14, -0.0125, 0.0)])
def test_golden_off_policy_mask(a, threshold, loss, masked):
    """Response 2, A < 0, drifted by -(log 0.7 + log 1.1) / 2 = 0.1306824; only (1.2 + 0.6 + 1.125) / 3 / 2 is left."""
    hparams = grpo.GRPOConfig(off_policy_threshold=threshold)
    for advantages, expected, share in ((A2, loss, masked), (-A2, None, 0.0)):  # response 1 drifted less: 0.0436
        got, metrics = grpo.ALGORITHM.loss(a.new, a.old, advantages, a.mask, hparams, a.totals)
        assert metrics["off_policy_fraction"] == share
        assert expected is None or got.item() == pytest.approx(expected)


def test_golden_tokens_of_fixture_a(a):
    """A = +-1, range 0.2: 1.3 -> 1.2 with A > 0, 0.7 -> 0.8 with A < 0; the others keep ratio and gradient."""
    log_ratio = torch.where(a.mask, a.new - a.old, 0.0).requires_grad_(True)
    value, _ = clipped_objective(log_ratio, a.new, A2, a.mask, Clipped())
    close(-value.detach()[a.mask], [-1.2, -0.6, -1.125, 0.8, 1.1])
    (grad,) = torch.autograd.grad(-value[a.mask].sum(), log_ratio)
    close(grad, [[0.0, -0.6, -1.125], [0.0, 1.1, 0.0]])


def test_golden_tokens_with_whitened_gae(a):
    whitened = torch.tensor([[0.7445129, 1.0048312, 0.3433354], [-1.2997974, -0.7928822, 0.0]], dtype=torch.float64)
    log_ratio = torch.where(a.mask, a.new - a.old, 0.0)
    value, _ = clipped_objective(log_ratio, a.new, whitened, a.mask, Clipped())
    close(-value[a.mask], [-0.8934155, -0.6028987, -0.3862523, 1.0398379, 0.8721704])


def test_clip_fraction_counts_active_clips_only(a):
    """1.3 with A > 0, and 0.7 with A < 0: 2 of 5. |ratio - 1| > 0.2 would count 0.6 with A > 0 as well: 3 of 5."""
    _, metrics = grpo.ALGORITHM.loss(a.new, a.old, A2, a.mask, grpo.GRPOConfig(), a.totals)
    assert metrics["clip_fraction"].item() == pytest.approx(0.4)
    assert metrics["clip_fraction_low"].item() == metrics["clip_fraction_high"].item() == pytest.approx(0.2)


@pytest.mark.parametrize(
    "ratio, advantage, low, high",
    [  # range 0.8 to 1.4: only what pushes further out is silenced, however small its advantage
        (1.5, 0.5, 0, 1),
        (1.3, 0.5, 0, 0),
        (1.5, 0.0, 0, 0),
        (1.5, -0.5, 0, 0),
        (0.9, -0.5, 0, 0),
        (0.7, -0.5, 1, 0),
        (0.5, 0.0, 0, 0),
        (0.5, 0.5, 0, 0),
    ],
)
def test_the_sign_of_the_advantage_says_whether_a_ratio_outside_the_range_is_silenced(ratio, advantage, low, high):
    new, advantages = torch.tensor([[ratio]]).log(), torch.tensor([[advantage]])
    hparams = grpo.GRPOConfig(clip_low=0.2, clip_high=0.4)
    _, metrics = grpo.ALGORITHM.loss(new, torch.zeros(1, 1), advantages, ONE, hparams, Totals(1, 1))
    assert (metrics["clip_fraction_low"], metrics["clip_fraction_high"]) == (low, high)
    assert metrics["clip_fraction"] == low + high


def test_a_ratio_on_the_bound_is_not_beyond_it(a):  # on-policy and a range of nothing: all ratios are exactly 1
    hparams = grpo.GRPOConfig(clip_low=0.0, clip_high=0.0)
    _, metrics = grpo.ALGORITHM.loss(a.old, a.old, A2, a.mask, hparams, a.totals)
    assert metrics["clip_fraction"] == 0


def test_dual_clip_counts_what_it_bounds():
    mask = torch.ones(1, 2, dtype=torch.bool)
    new = torch.tensor([[5.0, 2.0]]).log()
    hparams = grpo.GRPOConfig(dual_clip=3.0)
    _, metrics = grpo.ALGORITHM.loss(new, torch.zeros(1, 2), torch.tensor([[-1.0]]), mask, hparams, Totals(1, 2))
    assert metrics["dual_clip_fraction"].item() == 0.5 and metrics["clip_fraction"] == 0


@pytest.mark.parametrize(
    "setting, message",
    [
        ({"clip_low": -0.1}, r"clip_low must be at least 0, got -0\.1"),
        ({"clip_high": -0.1}, r"clip_high must be at least 0, got -0\.1"),
        ({"dual_clip": 1.0}, r"dual_clip must be above 1, .*got 1\.0"),
        ({"ratio_cap": 1.1}, r"ratio_cap must be at least 1 \+ clip_high = 1\.2, .*got 1\.1"),
    ],
)
def test_impossible_ranges_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        grpo.GRPOConfig(**setting)
