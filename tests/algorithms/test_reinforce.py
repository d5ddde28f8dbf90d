"""REINFORCE and what differs from it in the baseline alone. sum log pi = -2.4332634, -1.8708027."""

from dataclasses import replace

import pytest
import torch
from golden import close, gradient

from algos import decoupled_ppo, gpg, pass_at_k, raft, reinforce, reinforce_pp, remax, rloo


def loss_of(a, algorithm, **settings):
    hparams = replace(algorithm.defaults, kl_coef=0.0, **settings)
    advantages = algorithm.advantages(a, hparams)
    return gradient(lambda x: algorithm.loss(x, a.old, advantages, a.mask, hparams, a.totals)[0], a.new)


@pytest.mark.parametrize(
    "algorithm, expected",
    [
        (reinforce.ALGORITHM, 1.2166317),  # A = 1, 0: 2.4332634 / 2
        (reinforce.BATCH_BASELINE, 0.1406152),  # A = +-0.5: (2.4332634 - 1.8708027) / 4
        (reinforce.GROUP_BASELINE, 0.1406152),
        (rloo.ALGORITHM, 0.2812304),  # A = +-1
        (reinforce.LENGTH_WEIGHTED, -0.0745882),  # b = 3/5, A = 0.4, -0.6: (0.4 x 2.4332634 - 0.6 x 1.8708027) / 2
    ],
    ids=["none", "batch", "group", "leave_one_out", "length_weighted"],
)
def test_golden_loss(a, algorithm, expected):
    loss, _ = loss_of(a, algorithm)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_golden_gpg(a):
    """A = +-0.5, the mean over 5 tokens: (0.5 x 2.4332634 - 0.5 x 1.8708027) / 5."""
    loss, grad = loss_of(a, gpg.ALGORITHM)
    assert loss.item() == pytest.approx(0.0562461, abs=1e-6)
    close(grad, [[-0.1] * 3, [0.1, 0.1, 0.0]])


def test_golden_pass_at_k(a):  # A = 1 - 0 and 0: 2.4332634 / 2
    loss, grad = loss_of(a, pass_at_k.ALGORITHM)
    assert loss.item() == pytest.approx(1.2166317, abs=1e-6)
    close(grad, [[-0.5] * 3, [0.0] * 3])


def test_golden_loss_against_the_greedy_response(a):  # greedy reward 0.25: A = 0.75, -0.25
    a.greedy_rewards = torch.tensor([0.25], dtype=torch.float64)
    loss, _ = loss_of(a, remax.ALGORITHM)
    assert loss.item() == pytest.approx((0.75 * 2.4332634 - 0.25 * 1.8708027) / 2, abs=1e-6)


def test_the_gradient_is_the_token_sum_whatever_the_ratio(a):  # -A / B for each token; the ratios are not 1
    _, grad = loss_of(a, rloo.ALGORITHM)
    close(grad, [[-0.5] * 3, [0.5, 0.5, 0.0]])


def test_golden_raft(a):
    """Response 1 alone is accepted: negative log-likelihood 2.4332634, 0.8110878 by token."""
    mask = a.mask & torch.tensor([[True], [False]])
    advantages = raft.ALGORITHM.advantages(a, raft.RAFTConfig())
    assert advantages.tolist() == [[1.0], [1.0]]  # what counts is which responses are kept
    for mode, expected in (("token-mean", 0.8110878), ("seq-mean-token-sum", 2.4332634)):
        hparams = raft.RAFTConfig(aggregation=mode)
        loss, _ = raft.ALGORITHM.loss(a.new, a.old, advantages, mask, hparams, type(a.totals).of(mask))
        assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_reinforce_pp_clips_as_ppo_does_and_takes_the_token_mean(a):
    """A = 0.7302967 x3, -1.0954451 x2 against the clipped ratios 1.2, 0.6, 1.125 and 0.8, 1.1, over 5 tokens."""
    loss, _ = loss_of(a, reinforce_pp.BASELINE)
    expected = (-0.7302967 * (1.2 + 0.6 + 1.125) + 1.0954451 * (0.8 + 1.1)) / 5
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_golden_decoupled_ppo(a):
    """Those ratios and advantages, times pi_old over the sampler: 2 for one token, 6 for another, which is left out.

    -A rho w / 5: 0.7302967 x 0.6 x 2 and 0.7302967 x 1.125, the first token of each response being clipped.
    """
    hparams = decoupled_ppo.ALGORITHM.defaults
    sampler = a.old - torch.tensor([[1.0, 2.0, 1.0], [1.0, 6.0, 1.0]], dtype=torch.float64).log()
    advantages = decoupled_ppo.ALGORITHM.advantages(a, hparams)

    def loss(x):
        return decoupled_ppo.ALGORITHM.loss(x, a.old, advantages, a.mask, hparams, a.totals, sampler_logprobs=sampler)

    value, grad = gradient(lambda x: loss(x)[0], a.new)
    close(grad, [[0.0, -0.1752712, -0.1643168], [0.0, 0.0, 0.0]])
    assert value.item() == pytest.approx((-0.7302967 * (1.2 + 1.2 + 1.125) + 1.0954451 * 0.8) / 5, abs=1e-6)
