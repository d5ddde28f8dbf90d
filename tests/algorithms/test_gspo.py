import pytest
import torch
from golden import close, gradient

from algos import grpo, gspo, luspo

PAPER = gspo.GSPOConfig()
A2 = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)


def run(a, algorithm=gspo.ALGORITHM):
    return lambda logprobs: algorithm.loss(logprobs, a.old, A2, a.mask, algorithm.defaults, a.totals)[0]


@pytest.mark.parametrize("algorithm", [gspo.ALGORITHM, gspo.TOKEN], ids=["gspo", "gspo_token"])
def test_golden_loss_and_gradient(a, algorithm):
    """s = 0.9573756, 0.8774964. Response 1 is unclipped (A > 0, s < 1), response 2 clipped (A < 0, s < 1 - 3e-4).

    (-0.9573756 + 0.9997) / 2, and -A s / (T B) = -0.9573756 / 6 for each token of response 1.
    """
    loss, grad = gradient(run(a, algorithm), a.new)
    assert loss.item() == pytest.approx(0.0211622, abs=1e-6)
    close(grad, [[-0.1595626] * 3, [0.0, 0.0, 0.0]])


@pytest.mark.parametrize("algorithm", [gspo.ALGORITHM, gspo.TOKEN], ids=["gspo", "gspo_token"])
def test_golden_loss_inside_the_clip_range(a, algorithm):  # s = 1.00030004, 0.99980002: nothing clipped
    log_ratio = torch.tensor([[2e-4, 5e-4, 2e-4], [-6e-4, 2e-4, float("nan")]], dtype=torch.float64)
    loss, metrics = algorithm.loss(a.old + log_ratio, a.old, A2, a.mask, algorithm.defaults, a.totals)
    assert loss.item() == pytest.approx(-2.5001250e-4, abs=1e-9)
    assert metrics["clip_fraction"] == 0
    assert metrics["sequence_ratio_max"].item() == pytest.approx(1.0003000450, abs=1e-9)
    assert metrics["sequence_ratio_min"].item() == pytest.approx(0.9998000200, abs=1e-9)


def test_golden_luspo(a):
    """Each response's term times its length: (-0.9573756 x 3 + 0.998 x 2) / 2, -A s / B for tokens of response 1.

    The clip range is its own: 1 - 2e-3 = 0.998.
    """
    loss, grad = gradient(run(a, luspo.ALGORITHM), a.new)
    assert loss.item() == pytest.approx(-0.4380634, abs=1e-6)
    close(grad, [[-0.4786878] * 3, [0.0, 0.0, 0.0]])


def test_clip_fraction_counts_responses(a):
    _, metrics = gspo.ALGORITHM.loss(a.new, a.old, A2, a.mask, PAPER, a.totals)
    assert metrics["clip_fraction"].item() == metrics["clip_fraction_low"].item() == pytest.approx(0.5)
    assert metrics["sequence_ratio_min"].item() == pytest.approx(0.8774964, abs=1e-6)
    assert metrics["sequence_ratio_mean"].item() == pytest.approx((0.9573756 + 0.8774964) / 2, abs=1e-6)
    assert metrics["ratio_max"].item() == pytest.approx(1.3)  # the tokens' own, whatever the level


def test_gspo_token_permits_an_advantage_per_token(a):
    """A s_i grad log pi for each token, over T_i B: -[1, 2, 3] x 0.9573756 / 6, and A > 0 with s < 1 is unclipped."""
    hparams = gspo.GSPOConfig(ratio="sequence_token", scale="whiten")
    advantages = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, float("nan")]], dtype=torch.float64)
    _, grad = gradient(lambda x: gspo.TOKEN.loss(x, a.old, advantages, a.mask, hparams, a.totals)[0], a.new)
    s = torch.tensor([[0.9573756], [0.8774964]], dtype=torch.float64)
    close(grad, -torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 0.0]]) * s / torch.tensor([[6.0], [4.0]]))


def test_on_policy_the_loss_is_minus_the_mean_advantage_and_the_gradient_is_spread_over_the_tokens(a):
    loss, grad = gradient(run(a), a.old)
    assert loss.item() == pytest.approx(0.0)
    close(grad, [[-1 / 6] * 3, [0.25, 0.25, 0.0]])  # -A / (T_i B)


def test_micro_batches_add_up_to_the_whole_step(a):
    _, whole = gradient(run(a), a.new)
    for row in range(2):
        rows = slice(row, row + 1)
        part = a.new[rows].clone().requires_grad_(True)
        gspo.ALGORITHM.loss(part, a.old[rows], A2[rows], a.mask[rows], PAPER, a.totals)[0].backward()
        torch.testing.assert_close(part.grad, whole[rows])


def test_advantages_per_token_are_refused(a):
    with pytest.raises(ValueError, match=r"advantages must be \(2, 1\), got \(2, 3\)"):
        gspo.ALGORITHM.loss(a.new, a.old, A2.expand(2, 3), a.mask, PAPER, a.totals)


def test_only_ratios_of_responses_report_on_responses(a):
    reported = "sequence_ratio_mean"
    assert reported in gspo.ALGORITHM.loss(a.new, a.old, A2, a.mask, gspo.GSPOConfig(), a.totals)[1]
    assert reported not in grpo.ALGORITHM.loss(a.new, a.old, A2, a.mask, grpo.GRPOConfig(), a.totals)[1]
