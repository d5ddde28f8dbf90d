"""The critic's loss, targets and explained variance."""

import pytest
import torch
from golden import close, fixture_a, gradient

from algos import ppo
from algos.pieces.critic import explained_variance
from algos.pieces.types import Totals

NAN = float("nan")
VALUES = torch.tensor([[0.7, 0.35, 0.65], [0.45, 0.5, NAN]], dtype=torch.float64)
KL = ppo.PPOConfig(kl_coef=0.1)


@pytest.mark.parametrize("value, expected, moves", [(0.9, 0.045, False), (0.6, 0.08, True), (0.2, 0.32, True)])
def test_golden_value_clipping_by_hand(value, expected, moves):  # old 0.5, return 1, range 0.2
    def loss(v):
        mask = torch.ones(1, 1, dtype=torch.bool)
        old = torch.full_like(v, 0.5)
        return ppo.ALGORITHM.value_loss(v, old, torch.ones_like(v), mask, ppo.PPOConfig(), Totals(1, 1))[0]

    got, grad = gradient(loss, torch.tensor([[value]], dtype=torch.float64))
    assert got.item() == pytest.approx(expected) and bool(grad.item() != 0) is moves


@pytest.mark.parametrize("clip, expected", [(0.2, 0.1205622), (None, 0.1133252)])
def test_golden_value_loss(a, clip, expected):
    returns = ppo.ALGORITHM.returns(a, KL)
    hparams = ppo.PPOConfig(value_clip=clip)
    loss, grad = gradient(
        lambda v: ppo.ALGORITHM.value_loss(v, a.values, returns, a.mask, hparams, a.totals)[0], VALUES
    )
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    assert torch.isfinite(grad).all() and grad[1, 2] == 0


def test_only_the_values_get_a_gradient():
    """Value 0.9, 0.4 from the old 0.5, return 1: the clipped error counts, 0.5 (0.5 + 0.2 - 1)^2 = 0.045."""
    value, old, returns = (torch.tensor([[x]], requires_grad=True) for x in (0.9, 0.5, 1.0))
    mask = torch.ones(1, 1, dtype=torch.bool)
    loss, _ = ppo.ALGORITHM.value_loss(value, old, returns, mask, ppo.PPOConfig(), Totals(1, 1))
    loss.backward()
    assert loss.item() == pytest.approx(0.045) and value.grad is not None
    assert old.grad is None and returns.grad is None


@pytest.mark.parametrize("value, counted", [(0.9, 1), (0.6, 0), (0.2, 0)])
def test_the_clip_is_counted_where_it_raises_the_error(value, counted):
    """Old 0.5, return 1, range 0.2: 0.09 against 0.01; 0.16 both; 0.49 against 0.64, the unclipped error."""
    mask = torch.ones(1, 1, dtype=torch.bool)
    values, old, returns = (torch.tensor([[x]], dtype=torch.float64) for x in (value, 0.5, 1.0))
    _, metrics = ppo.ALGORITHM.value_loss(values, old, returns, mask, ppo.PPOConfig(), Totals(1, 1))
    assert metrics["value_clip_fraction"] == counted


def test_golden_value_clip_fraction(a):  # 1 of 5: the first, which moved by 0.3
    returns = ppo.ALGORITHM.returns(a, KL)
    _, metrics = ppo.ALGORITHM.value_loss(VALUES, a.values, returns, a.mask, ppo.PPOConfig(), a.totals)
    assert metrics["value_clip_fraction"].item() == pytest.approx(0.2)


def test_the_coefficient_scales_the_loss_and_not_what_is_logged(a):
    returns = ppo.ALGORITHM.returns(a, KL)
    loss, metrics = ppo.ALGORITHM.value_loss(VALUES, a.values, returns, a.mask, ppo.PPOConfig(value_coef=0.1), a.totals)
    assert loss.item() == pytest.approx(0.01205622, abs=1e-7)
    assert metrics["value_loss"].item() == pytest.approx(0.1205622, abs=1e-6)


def test_golden_returns(a):  # advantages before whitening, plus the values
    close(ppo.ALGORITHM.returns(a, KL), [[1.0118490, 1.0493147, 1.0], [0.0323144, 0.0, 0.0]])


@pytest.mark.parametrize(
    "lam, expected",
    [
        (0.0, [[0.3, 0.6693147, 1.0], [0.2223144, 0.0, 0.0]]),
        (1.0, [[1.0693147, 1.0693147, 1.0], [0.0223144, 0.0, 0.0]]),
    ],
)
def test_golden_returns_of_the_critics_own_lambda(a, lam, expected):
    """Decoupled GAE: the targets follow gae_lambda_critic, the policy's advantages gae_lambda."""
    hparams = ppo.PPOConfig(kl_coef=0.1, gae_lambda_critic=lam)
    close(ppo.ALGORITHM.returns(a, hparams), expected)
    torch.testing.assert_close(ppo.ALGORITHM.advantages(a, hparams), ppo.ALGORITHM.advantages(a, KL))
    close(ppo.ALGORITHM.returns(a, ppo.PPOConfig(kl_coef=0.1, gae_lambda=lam)), expected)


def test_golden_explained_variance(a):
    returns = ppo.ALGORITHM.returns(a, KL)
    assert explained_variance(a.values, returns, a.mask) == pytest.approx(0.0797014, abs=1e-6)
    assert explained_variance(returns, returns, a.mask) == 1.0
    flat = explained_variance(a.values, torch.zeros_like(returns), a.mask)
    assert flat != flat  # NaN: there is nothing to explain


@pytest.mark.parametrize("clip", [0.2, None])
def test_finite_differences_of_the_loss_equal_its_gradient(clip):
    a, hparams = fixture_a(0.0), ppo.PPOConfig(value_clip=clip)
    returns = ppo.ALGORITHM.returns(a, KL)
    assert torch.autograd.gradcheck(
        lambda v: ppo.ALGORITHM.value_loss(v, a.values, returns, a.mask, hparams, a.totals)[0],
        ((a.values + 0.07).requires_grad_(True),),
    )


def test_micro_batches_add_up_to_the_whole_step(a):
    returns = ppo.ALGORITHM.returns(a, KL)
    _, whole = gradient(
        lambda v: ppo.ALGORITHM.value_loss(v, a.values, returns, a.mask, KL, a.totals)[0], a.values + 0.05
    )
    for row in range(2):
        r = slice(row, row + 1)
        _, part = gradient(
            lambda v, r=r: ppo.ALGORITHM.value_loss(v, a.values[r], returns[r], a.mask[r], KL, a.totals)[0],
            a.values[r] + 0.05,
        )
        torch.testing.assert_close(part, whole[r])


@pytest.mark.parametrize(
    "setting",
    [{"gae_lambda": 1.5}, {"gamma": -0.1}, {"value_clip": 0.0}, {"kl_coef": -1.0}, {"gae_lambda_critic": 2.0}],
)
def test_impossible_settings_are_refused_by_name(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        ppo.PPOConfig(**setting)
