from dataclasses import replace

import pytest
import torch
from golden import close, gradient

from algos import ppo, ppo_penalty

NAN = float("nan")
KL = ppo.PPOConfig(kl_coef=0.1)


def run(a, advantages, hparams=KL, algorithm=ppo.ALGORITHM):
    return lambda x: algorithm.loss(x, a.old, advantages, a.mask, hparams, a.totals)[0]


def test_golden_loss_with_whitened_advantages(a):
    """Token mean of [[-0.8934155, -0.6028987, -0.3862523], [1.0398379, 0.8721704]]."""
    loss, grad = gradient(run(a, ppo.ALGORITHM.advantages(a, KL)), a.new)
    assert loss.item() == pytest.approx(0.0058883, abs=1e-6)
    assert torch.isfinite(grad).all() and grad[1, 2] == 0


def test_golden_gradient(a):  # token mean of [[0, -0.6, -1.125], [0, 1.1]] over 5 tokens
    advantages = torch.tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, NAN]], dtype=torch.float64)
    loss, grad = gradient(run(a, advantages), a.new)
    assert loss.item() == pytest.approx(-0.205, abs=1e-9)
    close(grad, [[0.0, -0.12, -0.225], [0.0, 0.22, 0.0]])


def test_an_objective_that_sums_a_responses_advantages_meets_no_padding(a):
    """Sums 1 + 2 + 3 = 6 and 4 + 5 = 9 for each token of its response: gradient -6 / 5 and -9 / 5."""
    advantages = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, NAN]], dtype=torch.float64)
    summed = replace(
        ppo.ALGORITHM,
        objective=lambda log_ratio, logprobs, A, mask, hparams: (A.sum(dim=1, keepdim=True) * logprobs, {}),
    )
    _, grad = gradient(run(a, advantages, algorithm=summed), a.new)
    close(grad, [[-1.2, -1.2, -1.2], [-1.8, -1.8, 0.0]])


def test_one_advantage_for_all_tokens_of_a_response_is_the_same_as_writing_it_out(a):
    one = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    torch.testing.assert_close(gradient(run(a, one), a.new), gradient(run(a, one.expand(2, 3)), a.new))


def test_a_kl_penalty_in_the_reward_adds_nothing_to_the_loss(a):
    advantages = ppo.ALGORITHM.advantages(a, KL)
    plain = run(a, advantages, ppo.PPOConfig())(a.new)
    assert run(a, advantages)(a.new) == plain
    assert run(a, advantages, ppo.PPOConfig(kl_coef=0.0, kl_in="loss"))(a.new) == plain


def test_micro_batches_add_up_to_the_whole_step(a):
    advantages = ppo.ALGORITHM.advantages(a, KL)
    _, whole = gradient(run(a, advantages), a.new)
    for row in range(2):
        r = slice(row, row + 1)
        _, part = gradient(
            lambda x, r=r: ppo.ALGORITHM.loss(x, a.old[r], advantages[r], a.mask[r], KL, a.totals)[0], a.new[r]
        )
        torch.testing.assert_close(part, whole[r])


@pytest.mark.parametrize("shape", [(2,), (3,), (3, 2), (1, 3)])
def test_advantages_that_would_broadcast_silently_are_refused(a, shape):
    with pytest.raises(ValueError, match=r"advantages must be \(2, 1\) or \(2, 3\), got"):
        run(a, torch.ones(shape, dtype=torch.float64))(a.new)


def test_the_penalty_by_hand(a):
    """rho A: (1.3 + 0.6 + 1.125 - 0.7 - 1.1) / 5 = 0.245; rho - 1 - log rho: k3, 0.0434086.

    Gradient: -(rho A - b (rho - 1)) / 5.
    """
    hparams = ppo_penalty.PPOPenaltyConfig(penalty_coef=2.0)
    advantages = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    loss, grad = gradient(run(a, advantages, hparams, ppo_penalty.ALGORITHM), a.new)
    assert loss.item() == pytest.approx(-0.245 + 2 * 0.0434086, abs=1e-6)
    expected = [[1.3 - 0.6, 0.6 + 0.8, 1.125 - 0.25], [-0.7 + 0.6, -1.1 - 0.2, 0.0]]
    close(grad, -torch.tensor(expected, dtype=torch.float64) / 5)


@pytest.mark.parametrize(
    "measured, expected", [(0.0066, 1.5), (0.0067, 3.0), (0.01, 3.0), (0.0149, 3.0), (0.0151, 6.0)]
)
def test_the_penalty_halves_below_two_thirds_of_the_target_and_doubles_above_one_and_a_half(measured, expected):
    hparams = ppo_penalty.PPOPenaltyConfig(penalty_coef=3.0, penalty_target=0.01)
    adapted = ppo_penalty.ALGORITHM.adapt(hparams, {"kl_after_update": measured}, 8)
    assert adapted.penalty_coef == expected


@pytest.mark.parametrize("measured", [0.5, 1.125])
def test_a_kl_on_either_bound_leaves_the_penalty(measured):  # 0.75 / 1.5 and 0.75 x 1.5, exact in binary
    hparams = ppo_penalty.PPOPenaltyConfig(penalty_coef=1.0, penalty_target=0.75)
    assert ppo_penalty.ALGORITHM.adapt(hparams, {"kl_after_update": measured}, 8) is hparams


@pytest.mark.parametrize("name", ["penalty_coef", "penalty_target"])
def test_a_penalty_of_zero_is_refused(name):  # doubling and halving would leave it there
    with pytest.raises(ValueError, match=rf"{name} must be above 0, got 0\.0"):
        ppo_penalty.PPOPenaltyConfig(**{name: 0.0})


def test_the_penalty_and_the_reference_kl_are_steered_apart():
    hparams = ppo_penalty.PPOPenaltyConfig(kl_coef=0.2, kl_target=6.0, penalty_target=0.01)
    adapted = ppo_penalty.ALGORITHM.adapt(hparams, {"kl_after_update": 1.0, "kl_to_ref_sequence": 9.0}, 256)
    assert (adapted.penalty_coef, adapted.kl_coef) == (2.0, pytest.approx(0.201024))
