"""Baselines, scales and credit by hand."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from golden import NAN, close, fixture_a

from algos import grpo, ppo, reinforce, reinforce_pp, rloo
from algos.pieces.advantages import (
    center,
    from_critic,
    gae,
    group_advantages,
    kl_penalties,
    leave_one_out_std,
    per_minibatch,
    place_on_last,
    process_advantages,
    rescale,
    reward_to_go,
    token_rewards,
)
from algos.pieces.masked import masked_mean, masked_var

TOKEN_REWARDS = torch.tensor([[0.0, 0.0693147, 1.0], [0.0223144, 0.0, 0.0]], dtype=torch.float64)


def rewards(*groups):
    return torch.tensor(groups, dtype=torch.float64)


def test_group_advantages_by_hand():  # mean 1/2, sample std sqrt(1/3); 0.5 / (0.57735 + 1e-6) = 0.86602
    got = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]]))
    close(got, [[0.86602, -0.86602, -0.86602, 0.86602], [0.0, 0.0, 0.0, 0.0]], atol=1e-5)


@pytest.mark.parametrize(
    "group, ddof, expected",
    [  # deviations from the mean: 3/4, -1/4; 1/2, 0, -1/2; 7/8, -1/8; 1/8, -7/8
        ([1, 0, 0, 0], 0, [1.7320508, -0.5773503, -0.5773503, -0.5773503]),  # std 0.4330127
        ([1, 0, 0, 0], 1, [1.5, -0.5, -0.5, -0.5]),  # std 0.5
        ([1, 0.5, 0, 0.5], 0, [1.4142136, 0.0, -1.4142136, 0.0]),  # std 0.3535534
        ([1, 0.5, 0, 0.5], 1, [1.2247449, 0.0, -1.2247449, 0.0]),  # std 0.4082483
        ([1, *[0] * 7], 0, [2.6457513, *[-0.3779645] * 7]),  # sqrt(7), -1 / sqrt(7): rare successes are amplified
        ([0, *[1] * 7], 0, [-2.6457513, *[0.3779645] * 7]),  # and rare failures
    ],
)
def test_golden_group_advantages(group, ddof, expected):
    close(group_advantages(rewards(group), 0.0, ddof), [expected])


def test_golden_mean_only():  # Dr. GRPO
    close(rescale(center(rewards([1, 0, 0, 0]), "group_mean"), rewards([1, 0, 0, 0]), "none"), [[0.75, *[-0.25] * 3]])


@pytest.mark.parametrize(
    "group, expected",
    [  # the best reward without the response: 0.5 instead of 1; two that are best have each other
        ([1, 0.5, 0, 0], [0.5, 0, 0, 0]),
        ([1, 1, 0, 0], [0, 0, 0, 0]),
        ([-1, -2, -4, -4], [1, 0, 0, 0]),
    ],
)
def test_golden_what_a_response_adds_to_the_best(group, expected):  # pass@k
    close(center(rewards(group), "best_of_others"), [expected])


@pytest.mark.parametrize(
    "group, expected",
    [  # means 1/4, 3/4; nothing is learned from a group whose mean is not above 0
        ([1, 0, 0, 0], [3, -1, -1, -1]),
        ([1, 1, 1, 0], [1 / 3, 1 / 3, 1 / 3, -1]),
        ([0, 0, 0, 0], [0, 0, 0, 0]),
        ([0.5, -0.5, 0, 0], [0, 0, 0, 0]),
        ([1, -2, 0, 0], [0, 0, 0, 0]),
    ],
)
def test_golden_divided_by_the_mean(group, expected):  # MaxRL
    given = rewards(group)
    close(rescale(center(given, "group_mean"), given, "group_mean", epsilon=0.0), [expected])


@pytest.mark.parametrize("epsilon", [1e-6, 0.0])
@pytest.mark.parametrize("scale", ["group_std", "leave_one_out_std", "group_mean", "batch_std"])
def test_equal_rewards_give_exactly_zero_whatever_they_are(scale, epsilon):
    for reward in (0.0, 1.0, 0.1, 1 / 3, 1e6):  # the mean of equal floats may be off by an ulp
        equal = torch.full((1, 7), reward)
        for baseline in ("group_mean", "leave_one_out", "best_of_others", "batch_mean", "length_weighted"):
            centered = center(equal, baseline, lengths=torch.arange(1.0, 8.0)[None])
            assert (rescale(centered, equal, scale, 1, epsilon) == 0).all()


def test_adding_a_constant_or_scaling_all_rewards_of_a_group_changes_nothing():
    some = torch.randn(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plain = group_advantages(some, 0.0)
    torch.testing.assert_close(group_advantages(some + 5, 0.0), plain)
    torch.testing.assert_close(group_advantages(some * 3, 0.0), plain)


@pytest.mark.parametrize("baseline", ["group_mean", "leave_one_out", "best_of_others", "length_weighted"])
def test_a_group_of_one_is_refused(baseline):
    ones = torch.tensor([[1.0], [0.0]])
    with pytest.raises(ValueError, match="at least 2"):
        center(ones, baseline, lengths=torch.ones(2, 1))
    with pytest.raises(ValueError, match="at least 2"):
        group_advantages(ones)
    with pytest.raises(ValueError, match="at least 2"):
        group_advantages(torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize("scale", ["group_std", "leave_one_out_std"])
def test_a_group_of_one_has_no_spread_to_divide_by(scale):
    with pytest.raises(ValueError, match=rf"scale {scale} needs groups of at least 2 responses, got \(2, 1\)"):
        rescale(rewards([1], [0]), rewards([1], [0]), scale)


def test_a_group_of_empty_responses_has_no_lengths_to_weigh_by():  # 0 / 0 would be NaN: the baseline is 0
    got = center(rewards([1, 0], [1, 0]), "length_weighted", lengths=rewards([0, 0], [1, 3]))
    close(got, [[1.0, 0.0], [0.75, -0.25]])


@pytest.mark.parametrize(
    "baseline, expected",
    [
        ("none", [[1.0, 0.0], [1.0, 0.5]]),
        ("batch_mean", [[0.375, -0.625], [0.375, -0.125]]),  # 2.5 / 4 = 0.625
        ("group_mean", [[0.5, -0.5], [0.25, -0.25]]),
        ("leave_one_out", [[1.0, -1.0], [0.5, -0.5]]),
        ("length_weighted", [[0.75, -0.25], [0.25, -0.25]]),  # (1 x 1 + 3 x 0) / 4 = 0.25; (1 + 0.5) x 2 / 4 = 0.75
        ("greedy", [[0.5, -0.5], [0.0, -0.5]]),
    ],
)
def test_baselines_by_hand(baseline, expected):
    lengths = torch.tensor([[1.0, 3.0], [2.0, 2.0]], dtype=torch.float64)
    greedy = torch.tensor([0.5, 1.0], dtype=torch.float64)
    close(center(rewards([1, 0], [1, 0.5]), baseline, lengths, greedy), expected)


def test_the_greedy_baseline_needs_greedy_rewards():
    with pytest.raises(ValueError, match="greedy responses, got None"):
        center(rewards([1, 0]), "greedy")


@pytest.mark.parametrize(
    "group, expected",
    [([1, 0.5, 0, 0.5], [2 / 3, 0.0, -2 / 3, 0.0]), ([1, 0, 0, 0], [1.0, -1 / 3, -1 / 3, -1 / 3])],
)
def test_golden_leave_one_out(group, expected):
    close(center(rewards(group), "leave_one_out"), [expected])


def test_the_batchs_standard_deviation_by_hand():  # sample std of 1, 0, 1, 1 is 0.5
    both = rewards([1, 0], [1, 1])
    close(rescale(center(both, "group_mean"), both, "batch_std", 1, 0.0), [[1.0, -1.0], [0.0, 0.0]])


def test_the_standard_deviation_of_the_others_by_hand():  # without the first: 0, 0, 1, mean 1/3, squares 2/3
    close(leave_one_out_std(rewards([1, 0, 0, 1]), 0), [[(2 / 9) ** 0.5] * 4])
    close(leave_one_out_std(rewards([1, 0, 0, 1]), 1), [[(1 / 3) ** 0.5] * 4])
    assert (leave_one_out_std(rewards([1, 0]), 1) == 0).all()
    # the others of the first do not vary: its 1 - 0 is not divided; the others' -1/3 is divided by sqrt(2/9)
    odd = rewards([1, 0, 0, 0])
    got = rescale(center(odd, "leave_one_out"), odd, "leave_one_out_std", 0, 0.0)
    close(got, [[1.0, *[-1 / 3 / (2 / 9) ** 0.5] * 3]])


@pytest.mark.parametrize("others", [0.3, -1.2])
def test_others_that_are_equal_have_no_spread_however_floats_round(others):
    """In float32 the mean of their squares less the square of their mean may leave 4e-8: an advantage of thousands."""
    odd = torch.tensor([[1.1, *[others] * 6]])
    assert leave_one_out_std(odd, 0)[0, 0] == 0
    got = rescale(center(odd, "leave_one_out"), odd, "leave_one_out_std", 0)
    assert got[0, 0].item() == pytest.approx(1.1 - others)


def test_golden_process_supervision():  # mean 0.5, population std 0.2236068; summed from each step to the last
    got = process_advantages(rewards([0.2, 0.8], [0.4, 0.6]), 0.0, 0)
    close(got, [[0.0, 1.3416408], [0.0, 0.4472136]])


def test_advantages_are_one_number_per_response(a):  # 0.5 / sqrt(1/2)
    close(grpo.ALGORITHM.advantages(a, grpo.GRPOConfig(std_epsilon=0.0)), [[0.7071068], [-0.7071068]])


def test_golden_token_rewards(a):  # -0.1 (old - ref), and the reward on the last valid token
    got = token_rewards(a.rewards, a.old, a.ref, a.mask, kl_coef=0.1)
    close(got, [[0.0, 0.0693147, 1.0], [0.0223144, 0.0, 0.0]])


def test_the_reward_stands_on_the_last_valid_token_not_in_the_last_column():
    mask = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    got = place_on_last(torch.tensor([1.0, 2.0, 3.0]), mask)
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
    close(gae(TOKEN_REWARDS, a.values, a.mask, gamma, lam), expected)


def test_gae_of_a_short_response_ignores_the_padding_behind_it():  # an unmasked version gives 0.44575, 0.785, 0.3
    one = torch.tensor([[0.0, 1.0, 0.0]])
    got = gae(one, torch.tensor([[0.5, 0.2, 0.7]]), torch.tensor([[True, True, False]]), 1.0, 0.95)
    close(got, [[0.46, 0.80, 0.0]])


def test_gae_passes_over_a_masked_token_between_two_valid_ones():
    """Values 0.5, 0.25 and a reward of 1: A_2 = 1 - 0.25; A_0 = 0.25 - 0.5 + 0.5 x 0.75 = 0.125; in between 0."""
    got = gae(rewards([0, NAN, 1]), rewards([0.5, NAN, 0.25]), torch.tensor([[True, False, True]]), 1.0, 0.5)
    close(got, [[0.125, 0.0, 0.75]])


@pytest.mark.parametrize("distance, weight", [(10, 0.5987), (50, 0.0769), (100, 0.00592), (500, 7.3e-12)])
def test_lambda_decays_the_final_reward_along_a_long_response(distance, weight):  # 0.95^distance
    final = torch.zeros(1, distance + 1, dtype=torch.float64)
    final[0, -1] = 1.0
    got = gae(final, torch.zeros_like(final), torch.ones_like(final, dtype=torch.bool), 1.0, 0.95)
    assert got[0, 0].item() == pytest.approx(weight, rel=1e-2)


@pytest.mark.parametrize(
    "ddof, expected",
    [  # mean 0.2186956; sample variance 0.2788557, population variance 0.2230845
        (1, [[0.7445129, 1.0048312, 0.3433354], [-1.2997974, -0.7928822, 0.0]]),
        (0, [[0.8323908, 1.1234355, 0.3838606], [-1.4532176, -0.8864692, 0.0]]),
    ],
)
def test_golden_whitened_gae(a, ddof, expected):
    close(ppo.ALGORITHM.advantages(a, ppo.PPOConfig(kl_coef=0.1, std_ddof=ddof)), expected)


def test_golden_moments_of_gae(a):
    raw = from_critic(a, ppo.PPOConfig(kl_coef=0.1), 0.95)
    assert masked_mean(raw, a.mask).item() == pytest.approx(0.2186956, abs=1e-6)
    assert masked_var(raw, a.mask).item() == pytest.approx(0.2788557, abs=1e-6)


def test_whitened_rewards_keep_their_mean_and_have_variance_one(a):
    """With V = 0 and gamma = 0 the advantage of a token is its reward."""
    hparams = ppo.PPOConfig(kl_coef=0.1, gamma=0.0, whiten_rewards=True)
    a.values = torch.zeros_like(a.values)
    got = from_critic(a, hparams, 0.0)
    assert masked_mean(got, a.mask).item() == pytest.approx(TOKEN_REWARDS[a.mask].mean().item(), abs=1e-6)
    assert masked_var(got, a.mask).item() == pytest.approx(1.0, abs=1e-6)


def test_gae_needs_the_critics_values(a):
    a.values = None
    with pytest.raises(ValueError, match="critic's values, got None"):
        ppo.ALGORITHM.advantages(a, ppo.PPOConfig())


def test_golden_reinforce_pp(a):
    """Reward to go of the token rewards, mean 0.6321888 and sample variance 0.3222632, whitened."""
    to_go = reward_to_go(TOKEN_REWARDS, a.mask)
    close(to_go, [[1.0693147, 1.0693147, 1.0], [0.0223144, 0.0, 0.0]])
    assert masked_mean(to_go, a.mask).item() == pytest.approx(0.6321888, abs=1e-6)
    assert masked_var(to_go, a.mask).item() == pytest.approx(0.3222632, abs=1e-6)
    got = reinforce_pp.ALGORITHM.advantages(a, reinforce_pp.ReinforcePPConfig(kl_coef=0.1))
    close(got, [[0.7700187, 0.7700187, 0.6479174], [-1.0743234, -1.1136313, 0.0]])


def test_golden_reinforce_pp_baseline(a):  # 0.5 three times, -0.5 twice: mean 0.1, sample variance 0.3
    got = reinforce_pp.BASELINE.advantages(a, reinforce_pp.BASELINE.defaults)
    close(got, [[0.7302967] * 3, [-1.0954451, -1.0954451, 0.0]])


def test_a_kl_penalty_in_the_response_reward_comes_before_the_baseline(a):
    """Penalties 0.1 sum(old - ref) = -0.0693147 and -0.0223144: rewards 1.0693147 and 0.0223144, 1.0470003 apart."""
    close(rloo.ALGORITHM.advantages(a, rloo.RLOOConfig(kl_coef=0.1)), [[1.0470003], [-1.0470003]])
    assert rloo.ALGORITHM.advantages(a, rloo.RLOOConfig(kl_coef=0.1, kl_in="loss")).tolist() == [[1.0], [-1.0]]


def test_a_kl_penalty_with_token_credit_counts_from_its_token_on(a):
    """+-0.5 by the group's mean; token 1 of response 0 gains 0.0693147, which tokens 0 and 1 get."""
    hparams = reinforce.ReinforceConfig(baseline="group_mean", credit="token", kl_coef=0.1)
    got = reinforce.ALGORITHM.advantages(a, hparams)
    close(got, [[0.5693147, 0.5693147, 0.5], [-0.4776856, -0.5, 0.0]])


def test_a_kl_penalty_needs_the_reference(a):
    a.ref_logprobs = None
    with pytest.raises(ValueError, match="reference's log-probabilities, got None"):
        rloo.ALGORITHM.advantages(a, rloo.RLOOConfig())
    with pytest.raises(ValueError, match="full-vocabulary KL of the batch, got None"):
        rloo.ALGORITHM.advantages(a, rloo.RLOOConfig(kl_estimator="full"))


@pytest.mark.parametrize("algorithm", [ppo, rloo, reinforce_pp], ids=lambda module: module.__name__)
def test_without_a_kl_penalty_in_the_reward_no_reference_is_needed_and_none_has_an_effect(algorithm):
    """Neither a coefficient of 0 nor a KL in the loss: the advantages are those without a reference."""
    a, entry = fixture_a(), algorithm.ALGORITHM
    without = fixture_a()
    without.ref = without.ref_logprobs = None
    expected = entry.advantages(without, replace(entry.defaults, kl_coef=0.0, kl_in="reward"))
    for settings in ({"kl_coef": 0.0, "kl_in": "loss"}, {"kl_coef": 0.1, "kl_in": "loss"}):
        for batch in (a, without):
            torch.testing.assert_close(entry.advantages(batch, replace(entry.defaults, **settings)), expected)
    assert not torch.allclose(entry.advantages(a, replace(entry.defaults, kl_coef=0.1)), expected)


def test_the_full_kl_under_the_mask_is_no_penalty(a):  # NaN or garbage there: 0
    hparams = rloo.RLOOConfig(kl_coef=0.1, kl_estimator="full")
    a.full_kl = a.values
    close(kl_penalties(a, hparams), [[0.4, 0.3, 0.6], [0.5, 0.2, 0.0]])


def test_a_full_kl_in_the_reward_is_taken_as_it_is(a):  # rewards 1 - 0.1 x 3 and 0 - 0.1 x 2: 0.9 apart
    a.full_kl = torch.where(a.mask, torch.ones(2, 3, dtype=torch.float64), torch.nan)
    got = rloo.ALGORITHM.advantages(a, rloo.RLOOConfig(kl_coef=0.1, kl_estimator="full"))
    close(got, [[0.9], [-0.9]])


def test_whitening_by_minibatch_uses_its_tokens_alone():
    """The rollout batch stays as it is; a minibatch of advantages 1, 1, -1, -1, -1 has mean -0.2, variance 1.2."""
    hparams = reinforce_pp.ReinforcePPConfig(scale="whiten_minibatch", kl_coef=0.0, credit="response")
    mask = torch.tensor([[True, True, False], [True, True, True]])
    batch = SimpleNamespace(response_mask=mask, rewards=torch.tensor([1.0, -1.0]), group_size=1, greedy_rewards=None)
    advantages = reinforce_pp.ALGORITHM.advantages(batch, hparams)
    assert advantages.tolist() == [[1.0], [-1.0]]
    close(per_minibatch(advantages, mask, hparams), [[1.0954451, 1.0954451, 0.0], [-0.7302967] * 3])
    assert per_minibatch(advantages, mask, replace(hparams, scale="none")) is advantages


def test_advantages_and_returns_carry_no_gradient_and_rows_may_be_swapped(a):
    hparams = ppo.PPOConfig(kl_coef=0.1)
    swapped = type(a)(**{name: x.flip(0) if isinstance(x, torch.Tensor) else x for name, x in vars(a).items()})
    torch.testing.assert_close(ppo.ALGORITHM.advantages(swapped, hparams).flip(0), ppo.ALGORITHM.advantages(a, hparams))
    a.values.requires_grad_(True)  # a critic's output that was not detached
    assert not ppo.ALGORITHM.advantages(a, hparams).requires_grad
    assert not ppo.ALGORITHM.returns(a, hparams).requires_grad


@pytest.mark.parametrize(
    "scale, expected",
    [  # rewards 1, 0, 0, 1: std 0.5773503, so 0.5 / 1.0773503; leave-one-out of 0, 0, 1 or 1, 0, 1: the same std
        ("group_std", [0.4641016, -0.4641016, -0.4641016, 0.4641016]),
        ("batch_std", [0.4641016, -0.4641016, -0.4641016, 0.4641016]),
        ("leave_one_out_std", [0.4641016, -0.4641016, -0.4641016, 0.4641016]),
    ],
)
def test_the_epsilon_is_added_to_every_standard_deviation(scale, expected):
    group = rewards([1, 0, 0, 1])
    close(rescale(center(group, "group_mean"), group, scale, 1, 0.5), [expected])


def test_the_epsilon_is_added_to_the_standard_deviation_of_step_rewards():
    # steps 1, 0 and 0, 1: mean 1/2, std 0.5773503; 0.5 / 1.0773503 = 0.4641016; sums from each step to the last
    close(process_advantages(rewards([1, 0], [0, 1]), 0.5, 1), [[0.0, -0.4641016], [0.0, 0.4641016]])


def test_leave_one_out_std_of_the_smallest_group_that_has_one():  # others: 0, 0; 1, 0; 1, 0
    close(leave_one_out_std(rewards([1, 0, 0]), 1), [[0.0, 0.7071068, 0.7071068]])
    close(leave_one_out_std(rewards([1, 0]), 1), [[0.0, 0.0]])
