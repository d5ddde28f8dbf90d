import pytest
import torch
from conftest import gradient

from algos import grpo, gspo

PAPER = gspo.GSPOConfig()
A2 = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)


def run(a, config=PAPER):
    return lambda logprobs: gspo.loss(logprobs, a.old, A2, a.mask, config, a.totals)[0]


def test_golden_sequence_ratio(a):  # cube root of 0.8775, square root of 0.77
    expected = torch.tensor([[0.9573756], [0.8774964]], dtype=torch.float64)
    torch.testing.assert_close(gspo.sequence_ratio(a.new, a.old, a.mask), expected, atol=1e-6, rtol=0)


def test_the_ratio_of_a_long_response_stays_on_scale():  # plain product would be 2.717
    log_ratio = torch.full((1, 1000), 1.001, dtype=torch.float64).log()
    ratio = gspo.sequence_ratio(log_ratio, torch.zeros_like(log_ratio), torch.ones(1, 1000, dtype=torch.bool))
    assert ratio.item() == pytest.approx(1.001, abs=1e-9)


def test_golden_loss_and_gradient(a):  # response 1 unclipped (A > 0, s < 1), response 2 clipped (A < 0, s < 1 - 3e-4)
    loss, grad = gradient(run(a), a.new)
    assert loss.item() == pytest.approx(0.0211622, abs=1e-6)
    expected = torch.tensor([[-0.1595626] * 3, [0.0, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(grad, expected, atol=1e-6, rtol=0)


def test_golden_loss_inside_the_clip_range(a):  # s = 1.00030004, 0.99980002: nothing clipped
    log_ratio = torch.tensor([[2e-4, 5e-4, 2e-4], [-6e-4, 2e-4, float("nan")]], dtype=torch.float64)
    loss, metrics = gspo.loss(a.old + log_ratio, a.old, A2, a.mask, PAPER, a.totals)
    assert loss.item() == pytest.approx(-2.5001250e-4, abs=1e-9)
    assert metrics["clip_fraction"] == 0


def test_clip_fraction_counts_responses(a):
    _, metrics = gspo.loss(a.new, a.old, A2, a.mask, PAPER, a.totals)
    assert metrics["clip_fraction"].item() == metrics["clip_fraction_low"].item() == pytest.approx(0.5)
    assert metrics["sequence_ratio_min"].item() == pytest.approx(0.8774964, abs=1e-6)


def test_on_policy_the_loss_is_minus_the_mean_advantage_and_the_gradient_grpos(a):
    loss, grad = gradient(run(a), a.old)
    _, token_level = gradient(lambda x: grpo.loss(x, a.old, A2, a.mask, grpo.GRPOConfig(), a.totals)[0], a.old)
    assert loss.item() == pytest.approx(0.0)
    torch.testing.assert_close(grad, token_level)


def test_on_one_token_responses_gspo_is_grpo():
    generator = torch.Generator().manual_seed(0)
    new, old = (-torch.rand(6, 1, dtype=torch.float64, generator=generator) for _ in range(2))
    advantages = torch.randn(6, 1, dtype=torch.float64, generator=generator)
    mask = torch.ones(6, 1, dtype=torch.bool)
    from algos.training.types import Totals

    totals = Totals.of(mask)
    results = [
        gradient(lambda x, m=module, c=config: m.loss(x, old, advantages, mask, c, totals)[0], new)
        for module, config in ((gspo, gspo.GSPOConfig(clip_low=0.2, clip_high=0.2)), (grpo, grpo.GRPOConfig()))
    ]
    torch.testing.assert_close(results[0], results[1])


def test_micro_batches_add_up_to_the_whole_step(a):
    _, whole = gradient(run(a), a.new)
    for row in range(2):
        rows = slice(row, row + 1)
        part = a.new[rows].clone().requires_grad_(True)
        gspo.loss(part, a.old[rows], A2[rows], a.mask[rows], PAPER, a.totals)[0].backward()
        torch.testing.assert_close(part.grad, whole[rows])


def test_advantages_per_token_are_refused(a):
    with pytest.raises(ValueError, match=r"\(B, 1\)"):
        gspo.loss(a.new, a.old, A2.expand(2, 3), a.mask, PAPER, a.totals)
