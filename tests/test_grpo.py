import pytest
import torch
from conftest import gradient

from algos import grpo
from algos.training.types import Totals

PLAIN = grpo.GRPOConfig(std_epsilon=0.0)
A2 = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)


def run(a, advantages=A2, config=PLAIN, totals=None):
    return lambda logprobs: grpo.loss(logprobs, a.old, advantages, a.mask, config, totals or a.totals, a.ref)[0]


def test_group_advantages_by_hand():  # mean 1/2, sample std sqrt(1/3); 0.5 / (0.57735 + 1e-6) = 0.86602
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    expected = torch.tensor([[0.86602, -0.86602, -0.86602, 0.86602], [0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(grpo.group_advantages(rewards), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "rewards, expected",
    [  # golden: mean 1/4, std 1/2; mean 1/2, std 0.4082483
        ([1.0, 0.0, 0.0, 0.0], [1.5, -0.5, -0.5, -0.5]),
        ([1.0, 0.5, 0.0, 0.5], [1.2247449, 0.0, -1.2247449, 0.0]),
    ],
)
def test_golden_group_advantages(rewards, expected):
    got = grpo.group_advantages(torch.tensor([rewards], dtype=torch.float64), 0.0)
    torch.testing.assert_close(got, torch.tensor([expected], dtype=torch.float64), atol=1e-6, rtol=0)


def test_equal_rewards_give_exactly_zero_whatever_they_are():
    for reward in (0.0, 1.0, 0.1, 1 / 3, 1e6):  # the mean of equal floats may be off by an ulp
        assert (grpo.group_advantages(torch.full((1, 7), reward)) == 0).all()


def test_adding_a_constant_or_scaling_all_rewards_of_a_group_changes_nothing():
    rewards = torch.randn(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plain = grpo.group_advantages(rewards, 0.0)
    torch.testing.assert_close(grpo.group_advantages(rewards + 5, 0.0), plain)
    torch.testing.assert_close(grpo.group_advantages(rewards * 3, 0.0), plain)


def test_a_group_of_one_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        grpo.group_advantages(torch.tensor([[1.0], [0.0]]))


def test_advantages_are_one_number_per_response(a):
    got = grpo.advantages(a, PLAIN)
    torch.testing.assert_close(got, torch.tensor([[0.7071068], [-0.7071068]], dtype=torch.float64), atol=1e-6, rtol=0)


def test_golden_loss_and_gradient(a):  # reference, section 6: per token [[-1.2, -0.6, -1.125], [0.8, 1.1]]
    loss, grad = gradient(run(a), a.new)
    assert loss.item() == pytest.approx(-0.0125, abs=1e-9)
    expected = torch.tensor([[0.0, -0.1, -0.1875], [0.0, 0.275, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(grad, expected, atol=1e-7, rtol=0)


def test_golden_loss_with_sample_std_advantages(a):
    assert run(a, grpo.advantages(a, PLAIN))(a.new).item() == pytest.approx(-0.0088388, abs=1e-6)


def test_golden_loss_and_gradient_with_kl(a):
    loss, grad = gradient(run(a, config=grpo.GRPOConfig(kl_coef=0.04)), a.new)
    assert loss.item() == pytest.approx(-0.0026128, abs=1e-6)
    expected = torch.tensor([[0.0015385, -0.1155556, -0.1867593], [-0.0078571, 0.2759091, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(grad, expected, atol=1e-6, rtol=0)


def test_golden_diagnostics(a):  # active clips: ratio 1.3 with A > 0, and 0.7 with A < 0; 0.6 with A > 0 is not one
    _, metrics = grpo.loss(a.new, a.old, A2, a.mask, PLAIN, a.totals)
    assert metrics["clip_fraction"].item() == pytest.approx(0.4)
    assert metrics["clip_fraction_low"].item() == metrics["clip_fraction_high"].item() == pytest.approx(0.2)
    assert metrics["approx_kl_k1"].item() == pytest.approx(0.0784086, abs=1e-6)
    assert metrics["approx_kl_k3"].item() == pytest.approx(0.0434086, abs=1e-6)
    assert metrics["ratio_max"].item() == pytest.approx(1.3) and metrics["ratio_min"].item() == pytest.approx(0.6)


def test_clip_higher_moves_only_the_upper_bound(a):  # first token clipped at 1.28 instead of 1.2: -0.08 / 3 / 2
    wide = grpo.GRPOConfig(clip_high=0.28)
    assert run(a, config=wide)(a.new).item() == pytest.approx(-0.0125 - 0.08 / 6, abs=1e-9)


def test_on_policy_the_gradient_is_the_plain_policy_gradient(a):
    loss, grad = gradient(run(a), a.old)
    assert loss.item() == pytest.approx(0.0)  # -mean(A)
    expected = torch.tensor([[-1 / 6] * 3, [0.25, 0.25, 0.0]], dtype=torch.float64)  # -A / (B T_i)
    torch.testing.assert_close(grad, expected)
    assert grpo.loss(a.old, a.old, A2, a.mask, PLAIN, a.totals)[1]["clip_fraction"] == 0


def test_micro_batches_add_up_to_the_whole_step(a):
    _, whole = gradient(run(a), a.new)
    for row in range(2):
        rows = slice(row, row + 1)
        part = a.new[rows].clone().requires_grad_(True)
        grpo.loss(part, a.old[rows], A2[rows], a.mask[rows], PLAIN, a.totals)[0].backward()
        torch.testing.assert_close(part.grad, whole[rows])


def test_an_empty_response_adds_nothing(a):
    mask = torch.cat([a.mask, torch.zeros(1, 3, dtype=torch.bool)])
    new, old = (torch.cat([x, torch.full((1, 3), float("nan"), dtype=torch.float64)]) for x in (a.new, a.old))
    advantages = torch.cat([A2, torch.tensor([[3.0]], dtype=torch.float64)])
    assert grpo.loss(new, old, advantages, mask, PLAIN, Totals.of(mask))[0].item() == pytest.approx(-0.0125, abs=1e-9)


def test_advantages_without_a_second_dimension_are_refused(a):
    with pytest.raises(ValueError, match=r"\(B, 1\)"):
        grpo.loss(a.new, a.old, A2.squeeze(1), a.mask, PLAIN, a.totals)


def test_settings_below_zero_are_refused():
    with pytest.raises(ValueError, match=r"clip_low must be at least 0, got -0\.1"):
        grpo.GRPOConfig(clip_low=-0.1)
