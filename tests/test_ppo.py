import pytest
import torch
from conftest import gradient

from algos import ppo
from algos.diagnostics import clip_metrics
from algos.training.types import Totals

NAN = float("nan")
TOKEN_REWARDS = torch.tensor([[0.0, 0.0693147, 1.0], [0.0223144, 0.0, 0.0]], dtype=torch.float64)


def close(got, expected, atol=1e-6):
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), atol=atol, rtol=0)


def test_golden_token_rewards(a):  # -0.1 (old - ref), and the reward on the last valid token
    got = ppo.token_rewards(a.rewards, a.old, a.ref, a.mask, kl_coef=0.1)
    close(got, [[0.0, 0.0693147, 1.0], [0.0223144, 0.0, 0.0]])


def test_the_reward_stands_on_the_last_valid_token_not_in_the_last_column():
    mask = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    got = ppo.token_rewards(torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3, 3), None, mask)
    assert got.tolist() == [[0.0, 1.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    "gamma, lam, expected",
    [
        (1.0, 0.0, [[-0.1, 0.3693147, 0.4], [-0.2776856, -0.2, 0.0]]),
        (1.0, 0.95, [[0.6118490, 0.7493147, 0.4], [-0.4676856, -0.2, 0.0]]),
        (1.0, 1.0, [[0.6693147, 0.7693147, 0.4], [-0.4776856, -0.2, 0.0]]),
        (0.99, 0.95, [[0.5925136, 0.7395147, 0.4], [-0.4677856, -0.2, 0.0]]),
    ],
)
def test_golden_gae(a, gamma, lam, expected):
    close(ppo.gae(TOKEN_REWARDS, a.values, a.mask, gamma, lam), expected)


def test_gae_of_a_short_response_ignores_the_padding_behind_it():  # an unmasked version gives 0.44575, 0.785, 0.3
    got = ppo.gae(
        torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([[0.5, 0.2, 0.7]]), torch.tensor([[True, True, False]]), 1.0, 0.95
    )
    torch.testing.assert_close(got, torch.tensor([[0.46, 0.80, 0.0]]))


def test_gae_with_lambda_one_is_the_return_minus_the_value_and_with_zero_the_td_error():
    generator = torch.Generator().manual_seed(0)
    rewards, values = (torch.randn(3, 5, dtype=torch.float64, generator=generator) for _ in range(2))
    mask = torch.ones(3, 5, dtype=torch.bool)
    to_go = rewards.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(ppo.gae(rewards, values, mask, 1.0, 1.0), to_go - values)
    following = torch.cat([values[:, 1:], torch.zeros(3, 1, dtype=torch.float64)], dim=1)
    torch.testing.assert_close(ppo.gae(rewards, values, mask, 1.0, 0.0), rewards + following - values)


def test_golden_returns_and_whitened_advantages(a):
    config = ppo.PPOConfig(kl_coef=0.1)
    close(ppo.returns(a, config), [[1.0118490, 1.0493147, 1.0], [0.0323144, 0.0, 0.0]])
    close(ppo.advantages(a, config), [[0.7445129, 1.0048312, 0.3433354], [-1.2997974, -0.7928822, 0.0]])


def test_golden_loss_with_whitened_advantages(a):
    config = ppo.PPOConfig(kl_coef=0.1)
    loss, grad = gradient(lambda x: ppo.loss(x, a.old, ppo.advantages(a, config), a.mask, config, a.totals)[0], a.new)
    assert loss.item() == pytest.approx(0.0058883, abs=1e-6)
    assert torch.isfinite(grad).all() and grad[1, 2] == 0


def test_golden_gradient(a):  # token mean of [[0, -0.6, -1.125], [0, 1.1]] over 5 tokens
    advantages = torch.tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, NAN]], dtype=torch.float64)
    loss, grad = gradient(lambda x: ppo.loss(x, a.old, advantages, a.mask, ppo.PPOConfig(), a.totals)[0], a.new)
    assert loss.item() == pytest.approx(-0.205, abs=1e-9)
    close(grad, [[0.0, -0.12, -0.225], [0.0, 0.22, 0.0]])


def test_a_negative_advantage_with_a_large_ratio_is_not_clipped():  # -1 * 5 is the smaller objective: loss 5
    mask = torch.ones(1, 1, dtype=torch.bool)
    new = torch.tensor([[5.0]], dtype=torch.float64).log()
    loss, grad = gradient(
        lambda x: ppo.loss(x, torch.zeros_like(x), -torch.ones_like(x), mask, ppo.PPOConfig(), Totals(1, 1))[0], new
    )
    assert loss.item() == pytest.approx(5.0) and grad.item() == pytest.approx(5.0)


def test_clip_fraction_counts_active_clips_only(a):  # |ratio - 1| > 0.2 would count 3 of 5
    ratio = (a.new - a.old).exp()
    metrics = clip_metrics(ratio, torch.tensor([[1.0], [-1.0]]), 0.2, 0.2, a.mask, 5)
    assert metrics["clip_fraction"].item() == pytest.approx(0.4)


@pytest.mark.parametrize("value, expected, moves", [(0.9, 0.045, False), (0.6, 0.08, True), (0.2, 0.32, True)])
def test_golden_value_clipping_by_hand(value, expected, moves):  # old 0.5, return 1, range 0.2
    def loss(v):
        return ppo.value_loss(
            v,
            torch.full_like(v, 0.5),
            torch.ones_like(v),
            torch.ones(1, 1, dtype=torch.bool),
            ppo.PPOConfig(),
            Totals(1, 1),
        )[0]

    got, grad = gradient(loss, torch.tensor([[value]], dtype=torch.float64))
    assert got.item() == pytest.approx(expected) and bool(grad.item() != 0) is moves


def test_golden_value_loss(a):
    values = torch.tensor([[0.7, 0.35, 0.65], [0.45, 0.5, NAN]], dtype=torch.float64)
    returns = ppo.returns(a, ppo.PPOConfig(kl_coef=0.1))
    for clip, expected in ((0.2, 0.1205622), (None, 0.1133252)):
        config = ppo.PPOConfig(value_clip=clip)
        loss, grad = gradient(lambda v, c=config: ppo.value_loss(v, a.values, returns, a.mask, c, a.totals)[0], values)
        assert loss.item() == pytest.approx(expected, abs=1e-6)
        assert torch.isfinite(grad).all() and grad[1, 2] == 0
    _, metrics = ppo.value_loss(values, a.values, returns, a.mask, ppo.PPOConfig(), a.totals)
    assert metrics["value_clip_fraction"].item() == pytest.approx(0.2)


def test_micro_batches_add_up_to_the_whole_step(a):
    config = ppo.PPOConfig(kl_coef=0.1)
    advantages, returns = ppo.advantages(a, config), ppo.returns(a, config)
    _, whole = gradient(lambda x: ppo.loss(x, a.old, advantages, a.mask, config, a.totals)[0], a.new)
    _, whole_v = gradient(lambda v: ppo.value_loss(v, a.values, returns, a.mask, config, a.totals)[0], a.values + 0.05)
    for row in range(2):
        r = slice(row, row + 1)
        _, part = gradient(
            lambda x, r=r: ppo.loss(x, a.old[r], advantages[r], a.mask[r], config, a.totals)[0], a.new[r]
        )
        torch.testing.assert_close(part, whole[r])
        _, part_v = gradient(
            lambda v, r=r: ppo.value_loss(v, a.values[r], returns[r], a.mask[r], config, a.totals)[0],
            a.values[r] + 0.05,
        )
        torch.testing.assert_close(part_v, whole_v[r])


def test_advantages_and_returns_carry_no_gradient_and_rows_may_be_swapped(a):
    config = ppo.PPOConfig(kl_coef=0.1)
    swapped = type(a)(**{name: x.flip(0) if isinstance(x, torch.Tensor) else x for name, x in vars(a).items()})
    torch.testing.assert_close(ppo.advantages(swapped, config).flip(0), ppo.advantages(a, config))
    assert not ppo.advantages(a, config).requires_grad


def test_one_advantage_per_response_is_refused(a):
    with pytest.raises(ValueError, match=r"\(B, T\)"):
        ppo.loss(a.new, a.old, torch.ones(2, 1), a.mask, ppo.PPOConfig(), a.totals)


@pytest.mark.parametrize("setting", [{"gae_lambda": 1.5}, {"gamma": -0.1}, {"value_clip": 0.0}, {"kl_coef": -1.0}])
def test_impossible_settings_are_refused_by_name(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        ppo.PPOConfig(**setting)
