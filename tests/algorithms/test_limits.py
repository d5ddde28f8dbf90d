"""Where one algorithm becomes another: the settings under which two of them must agree, in loss and in gradient."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from golden import close, gradient

from algos import (
    ALGORITHMS,
    cispo,
    gmpo,
    grpo,
    gspo,
    lite_ppo,
    ppo,
    ppo_penalty,
    ppo_variants,
    raft,
    reinforce,
    reinforce_pp,
    remax,
    rloo,
    sapo,
    trpo,
)
from algos.pieces.advantages import gae, per_minibatch
from algos.pieces.kl import kl_full, kl_k1, kl_loss
from algos.pieces.types import Totals

ROWS, COLUMNS, GROUP = 8, 6, 4


@pytest.fixture
def batch():
    """Two groups of four responses of different lengths; ratios between about 0.5 and 2, NaN in the padding."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    mask = torch.arange(COLUMNS) < torch.tensor([6, 1, 3, 4, 2, 5, 6, 3])[:, None]
    old = torch.where(mask, -normal(ROWS, COLUMNS).abs() - 0.1, torch.nan)
    return SimpleNamespace(
        response_mask=mask,
        old_logprobs=old,
        ref_logprobs=old + 0.3 * normal(ROWS, COLUMNS),
        new_logprobs=old + 0.3 * normal(ROWS, COLUMNS),
        rewards=normal(ROWS),
        values=torch.where(mask, normal(ROWS, COLUMNS), torch.nan),
        group_size=GROUP,
        totals=Totals.of(mask),
        full_kl=None,
        greedy_rewards=None,
        loss_mask=mask,
    )


def run(batch, algorithm, logprobs=None, advantages=None, mask=None, **settings):
    """Loss and gradient of an algorithm with some of its settings changed, on its own advantages if none are given."""
    hparams = replace(algorithm.defaults, **settings)
    mask = batch.response_mask if mask is None else mask
    advantages = algorithm.advantages(batch, hparams) if advantages is None else advantages
    rest = (batch.old_logprobs, advantages, mask, hparams, Totals.of(mask), batch.ref_logprobs)
    return gradient(lambda x: algorithm.loss(x, *rest)[0], batch.new_logprobs if logprobs is None else logprobs)


def same(one, other, factor: float = 1.0):
    """Equal losses and gradients, those of `other` times factor."""
    torch.testing.assert_close(one[0], factor * other[0])
    torch.testing.assert_close(one[1], factor * other[1])
    assert one[1].abs().max() > 1e-3


def same_gradient(one, other, factor: float = 1.0):
    torch.testing.assert_close(one[1], factor * other[1])
    assert one[1].abs().max() > 1e-3


# ratios and clipping


def test_on_one_token_responses_and_one_clip_range_gspo_is_grpo_and_so_is_the_product():
    generator = torch.Generator().manual_seed(0)
    old = -torch.rand(8, 1, dtype=torch.float64, generator=generator)
    one = SimpleNamespace(
        response_mask=torch.ones(8, 1, dtype=torch.bool),
        old_logprobs=old,
        ref_logprobs=None,
        new_logprobs=old + 0.3 * torch.randn(8, 1, dtype=torch.float64, generator=generator),
        rewards=torch.randn(8, dtype=torch.float64, generator=generator),
        group_size=4,
        greedy_rewards=None,
    )
    plain = run(one, grpo.ALGORITHM)
    for algorithm in (gspo.ALGORITHM, gspo.TOKEN):
        same(run(one, algorithm, clip_low=0.2, clip_high=0.2), plain)
    same(run(one, gspo.ALGORITHM, ratio="product", clip_low=0.2, clip_high=0.2), plain)


@pytest.mark.parametrize("clip", [0.02, 0.2, 10.0])
def test_with_one_advantage_per_response_gspo_token_is_gspo(batch, clip):
    one, other = (run(batch, x, clip_low=clip, clip_high=clip) for x in (gspo.TOKEN, gspo.ALGORITHM))
    same(one, other)


def test_without_a_clip_gmpo_is_gspo(batch):  # both are then A times the geometric mean of the ratios
    same(run(batch, gmpo.ALGORITHM, clip_log=20.0), run(batch, gspo.ALGORITHM, clip_low=1e6, clip_high=1e6))


def test_without_a_clip_cispo_has_grpos_gradient(batch):  # rho A grad log pi
    one = run(batch, cispo.ALGORITHM, is_max=1e6)
    same_gradient(one, run(batch, grpo.ALGORITHM, clip_low=1e6, clip_high=1e6, aggregation="token-mean"))


@pytest.mark.parametrize("name", ["grpo", "dapo", "lite_ppo", "gspo", "gspo_token", "reinforce_pp_baseline", "ppo"])
def test_a_huge_clip_range_silences_no_token(batch, name):
    """-ratio A / (tokens), or / (T_i B), for each token; in the first step, ratio 1, the plain policy gradient."""
    algorithm, wide = ALGORITHMS[name], {"clip_low": 1e9, "clip_high": 1e9, "kl_coef": 0.0}
    hparams, mask = replace(algorithm.defaults, **wide), batch.response_mask
    advantages = algorithm.advantages(batch, hparams)
    divisor = mask.sum() if hparams.aggregation == "token-mean" else lengths(batch) * ROWS
    log_ratio = torch.where(mask, batch.new_logprobs - batch.old_logprobs, 0.0)
    if hparams.ratio != "token":
        log_ratio = log_ratio.sum(1, keepdim=True) / lengths(batch)
    for logprobs, ratio in ((batch.old_logprobs, 1.0), (batch.new_logprobs, log_ratio.exp())):
        _, grad = run(batch, algorithm, logprobs, **wide)
        torch.testing.assert_close(grad, torch.where(mask, -ratio * advantages / divisor, 0.0))
    _, metrics = algorithm.loss(batch.new_logprobs, batch.old_logprobs, advantages, mask, hparams, batch.totals)
    assert metrics["clip_fraction"] == 0


def lengths(batch):
    return batch.response_mask.sum(dim=1, keepdim=True)


def test_on_policy_grpo_gspo_gmpo_sapo_and_cispo_have_one_gradient(batch):
    """-A / (T_i B) for each token: the algorithms differ from the second optimizer step on."""
    mean = {"aggregation": "seq-mean-token-mean"}
    expected = run(batch, grpo.ALGORITHM, batch.old_logprobs)
    advantages = grpo.ALGORITHM.advantages(batch, grpo.ALGORITHM.defaults)
    by_hand = torch.where(batch.response_mask, -advantages / (lengths(batch) * ROWS), 0.0)
    torch.testing.assert_close(expected[1], by_hand)
    for algorithm in (gspo.ALGORITHM, gspo.TOKEN, gmpo.ALGORITHM, sapo.ALGORITHM):
        same_gradient(run(batch, algorithm, batch.old_logprobs), expected)
    same_gradient(run(batch, cispo.ALGORITHM, batch.old_logprobs, **mean), expected)
    same_gradient(
        run(batch, cispo.ALGORITHM, batch.old_logprobs),
        run(batch, grpo.ALGORITHM, batch.old_logprobs, aggregation="token-mean"),
    )


def test_on_policy_ppo_trpo_and_the_penalty_have_one_gradient(batch):  # KL(old || new) has its minimum there
    expected = run(batch, ppo.ALGORITHM, batch.old_logprobs)
    same_gradient(run(batch, trpo.ALGORITHM, batch.old_logprobs), expected)
    same_gradient(run(batch, ppo_penalty.ALGORITHM, batch.old_logprobs, penalty_coef=7.0), expected)


def test_the_surrogate_of_trpo_is_ppos_without_a_clip_and_a_penalty_of_nearly_zero(batch):
    expected = run(batch, ppo.ALGORITHM, clip_low=1e6, clip_high=1e6)
    same(run(batch, trpo.ALGORITHM), expected)
    same(run(batch, ppo_penalty.ALGORITHM, penalty_coef=1e-12), expected)


def test_options_that_never_bind_change_nothing(batch):
    expected = run(batch, grpo.ALGORITHM)
    same(run(batch, grpo.ALGORITHM, dual_clip=1e6), expected)
    same(run(batch, grpo.ALGORITHM, ratio_cap=1e6), expected)
    hparams = replace(grpo.ALGORITHM.defaults, correction="token_mask")
    advantages = grpo.ALGORITHM.advantages(batch, hparams)
    got = gradient(
        lambda x: grpo.ALGORITHM.loss(
            x,
            batch.old_logprobs,
            advantages,
            batch.response_mask,
            hparams,
            batch.totals,
            sampler_logprobs=batch.old_logprobs,
        )[0],
        batch.new_logprobs,
    )
    same(got, expected)


# advantages


def test_rloo_is_the_group_mean_times_g_over_g_minus_one(batch):
    one = run(batch, rloo.ALGORITHM, kl_coef=0.0)
    same(one, run(batch, reinforce.GROUP_BASELINE), GROUP / (GROUP - 1))


def test_on_policy_dr_grpo_is_rloo_up_to_a_constant(batch):  # (G - 1) / G from the mean, 1 / L from the aggregation
    dr_grpo = run(batch, ALGORITHMS["dr_grpo"], batch.old_logprobs, aggregation_length=48)
    same_gradient(dr_grpo, run(batch, rloo.ALGORITHM, batch.old_logprobs, kl_coef=0.0), (GROUP - 1) / GROUP / 48)


def test_remax_against_zero_is_reinforce_and_opo_on_equal_lengths_is_the_group_mean(batch):
    batch.greedy_rewards = torch.zeros(2, dtype=torch.float64)
    same(run(batch, remax.ALGORITHM), run(batch, reinforce.ALGORITHM))
    batch.response_mask = torch.ones(ROWS, COLUMNS, dtype=torch.bool)
    batch.old_logprobs = batch.new_logprobs = torch.zeros(ROWS, COLUMNS, dtype=torch.float64)
    same_gradient(run(batch, reinforce.LENGTH_WEIGHTED), run(batch, reinforce.GROUP_BASELINE))


def test_a_batch_of_one_group_has_the_groups_mean_and_standard_deviation(batch):
    batch.group_size = ROWS
    mean = {"aggregation": "token-mean"}
    same(run(batch, lite_ppo.ALGORITHM), run(batch, grpo.ALGORITHM, **mean))
    same(run(batch, reinforce.BATCH_BASELINE), run(batch, reinforce.GROUP_BASELINE))


def test_gae_with_lambda_one_is_the_return_minus_the_value_and_with_zero_the_td_error():
    generator = torch.Generator().manual_seed(0)
    rewards, values = (torch.randn(3, 5, dtype=torch.float64, generator=generator) for _ in range(2))
    mask = torch.ones(3, 5, dtype=torch.bool)
    to_go = rewards.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(gae(rewards, values, mask, 1.0, 1.0), to_go - values)
    following = torch.cat([values[:, 1:], torch.zeros(3, 1, dtype=torch.float64)], dim=1)
    torch.testing.assert_close(gae(rewards, values, mask, 0.9, 0.0), rewards + 0.9 * following - values)


def test_ppo_with_a_constant_critic_is_reinforce_with_that_baseline(batch):
    """lambda 1, no whitening, on-policy: A_t = r - c at every token."""
    c = 0.4
    batch.values = torch.where(batch.response_mask, c, torch.nan).double()
    ours = run(batch, ppo_variants.MONTE_CARLO, batch.old_logprobs, scale="none", aggregation="seq-mean-token-sum")
    batch.rewards = batch.rewards - c
    same_gradient(ours, run(batch, reinforce.ALGORITHM, batch.old_logprobs))


def test_ppo_with_a_critic_of_zero_is_reinforce_pp(batch):
    """Reward to go of the penalized token rewards, whitened over the batch, clipped."""
    batch.values = torch.where(batch.response_mask, 0.0, torch.nan).double()
    same(run(batch, ppo_variants.MONTE_CARLO, kl_coef=0.01), run(batch, reinforce_pp.ALGORITHM, kl_coef=0.01))


def test_reinforce_pp_baseline_is_the_group_mean_whitened_over_the_tokens(batch):
    """By hand: mean and sample variance over the list of all valid tokens' centered rewards."""
    centered = (batch.rewards.view(-1, GROUP) - batch.rewards.view(-1, GROUP).mean(1, keepdim=True)).view(-1, 1)
    tokens = centered.expand(ROWS, COLUMNS)[batch.response_mask]
    expected = (tokens - tokens.mean()) / (tokens.var() + 1e-8).sqrt()
    got = reinforce_pp.BASELINE.advantages(batch, reinforce_pp.BASELINE.defaults)
    torch.testing.assert_close(got[batch.response_mask], expected)


def test_whitening_the_only_minibatch_is_whitening_the_batch(batch):
    hparams = replace(reinforce_pp.BASELINE.defaults, scale="whiten_minibatch")
    raw = reinforce_pp.BASELINE.advantages(batch, hparams)
    torch.testing.assert_close(
        per_minibatch(raw, batch.response_mask, hparams),
        reinforce_pp.BASELINE.advantages(batch, reinforce_pp.BASELINE.defaults),
    )


def test_raft_is_the_mean_negative_log_likelihood_of_what_is_accepted(batch):
    accepted = torch.tensor([True, False, False, True, False, True, False, False])
    mask = batch.response_mask & accepted[:, None]
    loss, grad = run(batch, raft.ALGORITHM, mask=mask)
    torch.testing.assert_close(loss, -batch.new_logprobs[mask].mean())
    torch.testing.assert_close(grad, torch.where(mask, -1.0 / mask.sum(), 0.0).double())


def test_raft_is_reinforce_with_rewards_zero_and_one(batch):
    """The rejected have advantage 0; the two divide by the responses accepted and by all of them."""
    batch.rewards = torch.tensor([1.0, 0, 0, 1, 0, 1, 0, 0], dtype=torch.float64)
    mask = batch.response_mask & (batch.rewards == 1)[:, None]
    ours = run(batch, raft.ALGORITHM, mask=mask, aggregation="seq-mean-token-sum")
    same_gradient(ours, run(batch, reinforce.ALGORITHM), ROWS / 3)


# the KL term


def test_the_full_kl_is_the_expectation_of_k1_in_value_and_with_the_ratio_in_gradient():
    """Enumerating a vocabulary of 3 in 4 states, tokens drawn from b: E_b[p / b k1] = KL(p || q)."""
    generator = torch.Generator().manual_seed(0)
    logits, ref, old = (torch.randn(4, 3, dtype=torch.float64, generator=generator) for _ in range(3))
    q, b = torch.log_softmax(ref, dim=1), torch.log_softmax(old, dim=1)
    everywhere = torch.ones(4, 3, dtype=torch.bool)
    hparams = grpo.GRPOConfig(kl_coef=1.0, kl_estimator="k1", kl_importance_weighted=True)

    def exact(z):
        return kl_full(torch.log_softmax(z, dim=1), q).sum()

    def estimated(z):
        p = torch.log_softmax(z, dim=1)
        return (b.exp() * kl_loss(hparams, p, q, None, p - b, everywhere)).sum()

    same(gradient(estimated, logits), gradient(exact, logits))
    p = torch.log_softmax(logits, dim=1)
    torch.testing.assert_close((p.exp() * kl_k1(p, q, everywhere)).sum(), exact(logits))


def test_equal_policies_have_no_kl_term_and_its_coefficient_does_not_matter(batch):
    batch.ref_logprobs = batch.new_logprobs
    plain = run(batch, grpo.ALGORITHM)
    for estimator in ("k2", "k3", "k3+"):
        same(run(batch, grpo.ALGORITHM, kl_coef=5.0, kl_estimator=estimator), plain)


def test_the_ratio_on_the_kl_term_is_one_in_the_first_step_in_value_and_not_in_gradient(batch):
    """On-policy rho k3 has k3's value; its gradient is k3 grad log pi + grad k3 = k1's coefficient: log p - log q."""
    zero = torch.zeros(ROWS, 1, dtype=torch.float64)
    with_ratio, without = (
        run(batch, grpo.ALGORITHM, batch.old_logprobs, zero, kl_coef=1.0, kl_importance_weighted=ratio)
        for ratio in (True, False)
    )
    torch.testing.assert_close(with_ratio[0], without[0])
    coefficient = (batch.old_logprobs - batch.ref_logprobs) / (lengths(batch) * ROWS)
    torch.testing.assert_close(with_ratio[1], torch.where(batch.response_mask, coefficient, 0.0))
    assert not torch.allclose(with_ratio[1], without[1])


def test_golden_limits_on_fixture_a(a):
    """GMPO at e = 0.4 clips nothing there, so that its means are GSPO's s; see test_gmpo and test_gspo."""
    one = torch.tensor([[1.0], [1.0]], dtype=torch.float64)
    unclipped = gspo.GSPOConfig(clip_low=1.0, clip_high=1.0)
    loss = gspo.ALGORITHM.loss(a.new, a.old, one, a.mask, unclipped, a.totals)[0]
    close(loss, -(0.9573756 + 0.8774964) / 2)
    close(gmpo.ALGORITHM.loss(a.new, a.old, one, a.mask, gmpo.GMPOConfig(), a.totals)[0], loss.item())
