"""Golden numbers: p = [0.5, 0.3, 0.2] against q = [0.25, 0.25, 0.5], and Fixture A.

Expectations are taken by enumerating the three tokens: row i of a batch of one-token responses is token i, weighted
with its probability.
"""

from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from golden import NAN, close

from algos import grpo, ppo, reinforce
from algos.pieces.kl import KLEstimator, adapt_coefficient, kl_full, kl_k1, kl_k2, kl_k3, kl_k3_plus, kl_loss
from algos.pieces.masked import masked_mean
from algos.pieces.types import Totals

P, Q, B = (torch.tensor(p, dtype=torch.float64) for p in ([0.5, 0.3, 0.2], [0.25, 0.25, 0.5], [0.4, 0.4, 0.2]))
ALL = torch.ones(3, dtype=torch.bool)
REVERSE = [0.2375676, -0.0107071, -0.2268605]  # gradient of KL(p || q) with respect to the logits of p
FORWARD = [0.25, 0.05, -0.30]  # of KL(q || p): p - q
NONE = [0.0, 0.0, 0.0]


def logits_gradient(expectation):
    """Gradient with respect to the logits z of p = softmax(z) of expectation(log p)."""
    z = P.log().clone().requires_grad_(True)
    expectation(torch.log_softmax(z, dim=0)).backward()
    return z.grad


@pytest.mark.parametrize(
    "estimate, values, mean, variance",
    [
        (kl_k1, [0.6931472, 0.1823216, -0.9162907], 0.2180119, 0.3705874),
        (kl_k2, [0.2402265, 0.0166206, 0.4197944], 0.2090583, 0.0204773),
        (kl_k3, [0.1931472, 0.0156549, 0.5837093], 0.2180119, 0.0393405),
    ],
)
def test_golden_values(estimate, values, mean, variance):
    got = estimate(P.log(), Q.log(), ALL)
    close(got, values)
    assert (P * got).sum().item() == pytest.approx(mean, abs=1e-6)
    assert (P * got**2).sum().item() - mean**2 == pytest.approx(variance, abs=1e-6)


def test_golden_exact_values():
    assert kl_full(P.log(), Q.log()).item() == pytest.approx(0.2180119, abs=1e-6)
    assert kl_full(P.log(), Q.log(), "forward").item() == pytest.approx(0.2392782, abs=1e-6)


@pytest.mark.parametrize(
    "estimate, expected",
    [(kl_k1, NONE), (kl_k2, REVERSE), (kl_k3, FORWARD), (kl_k3_plus, REVERSE)],
)
def test_golden_expected_gradients_as_losses(estimate, expected):
    close(logits_gradient(lambda logp: (P * estimate(logp, Q.log(), ALL)).sum()), expected)


@pytest.mark.parametrize("direction, expected", [("reverse", REVERSE), ("forward", FORWARD)])
def test_golden_gradients_of_the_full_kl(direction, expected):
    close(logits_gradient(lambda logp: kl_full(logp, Q.log(), direction)), expected)


@pytest.mark.parametrize(
    "estimator, expected",
    [("k1", REVERSE), ("k2", [0.0155841, -0.0577313, 0.0421472]), ("k3", [-0.0124324, -0.0607071, 0.0731395])],
)
def test_golden_expected_gradients_in_the_reward(estimator, expected):
    """REINFORCE with reward 0 and the penalty in the reward: the coefficient of grad log p, without own gradient."""
    mask = torch.ones(3, 1, dtype=torch.bool)
    hparams = reinforce.ReinforceConfig(kl_coef=1.0, kl_estimator=estimator)
    batch = SimpleNamespace(
        rewards=torch.zeros(3, dtype=torch.float64),
        old_logprobs=P.log()[:, None],
        ref_logprobs=Q.log()[:, None],
        response_mask=mask,
        group_size=1,
        full_kl=None,
        greedy_rewards=None,
    )
    weighted = (
        3 * P[:, None] * reinforce.ALGORITHM.advantages(batch, hparams)
    )  # the loss takes the plain mean of 3 rows
    got = logits_gradient(
        lambda logp: reinforce.ALGORITHM.loss(
            logp[:, None], batch.old_logprobs, weighted, mask, hparams, Totals.of(mask)
        )[0]
    )
    close(got, expected)


@pytest.mark.parametrize(
    "estimator, kl_importance_weighted, expected",
    [
        ("k3", False, [0.2166667, 0.0766667, -0.2933333]),  # neither divergence: the tokens are the old policy's
        ("k2", False, [0.1937942, 0.0228498, -0.2166440]),
        ("k1", True, REVERSE),  # with the ratio, and the gradient through it: exact
        ("k3", True, REVERSE),
    ],
)
def test_golden_expected_gradients_off_policy(
    estimator, kl_importance_weighted, expected
):  # tokens from b = [0.4, 0.4, 0.2]
    hparams = grpo.GRPOConfig(kl_estimator=estimator, kl_importance_weighted=kl_importance_weighted, kl_coef=1.0)
    close(
        logits_gradient(lambda logp: (B * kl_loss(hparams, logp, Q.log(), None, logp - B.log(), ALL)).sum()), expected
    )


def test_golden_off_policy_gradient_with_a_ratio_that_carries_none():  # as on-policy k3: p - q
    got = logits_gradient(lambda logp: (B * (logp - B.log()).detach().exp() * kl_k3(logp, Q.log(), ALL)).sum())
    close(got, FORWARD)


def test_k3_plus_has_the_value_of_k3_and_the_gradient_of_k2(a):
    logprobs = a.new.clone().requires_grad_(True)
    plus, k2 = kl_k3_plus(logprobs, a.ref, a.mask), kl_k2(logprobs, a.ref, a.mask)
    torch.testing.assert_close(plus, kl_k3(a.new, a.ref, a.mask))
    for one, other in zip(*(torch.autograd.grad(x.sum(), logprobs) for x in (plus, k2)), strict=True):
        torch.testing.assert_close(one, other)


def test_golden_fixture_a(a):
    close(kl_k1(a.new, a.ref, a.mask), [[0.2623643, -1.2039728, 0.1177830], [-0.5798185, 0.0953102, 0.0]])
    assert masked_mean(kl_k1(a.new, a.ref, a.mask), a.mask).item() == pytest.approx(-0.2616668, abs=1e-6)
    assert masked_mean(kl_k2(a.new, a.ref, a.mask), a.mask).item() == pytest.approx(0.1877532, abs=1e-6)
    k3 = kl_k3(a.new, a.ref, a.mask)
    close(k3, [[0.0315950, 1.1293605, 0.0066719], [0.2058958, 0.0044011, 0.0]])
    assert masked_mean(k3, a.mask).item() == pytest.approx(0.2755849, abs=1e-6)
    assert masked_mean(k3, a.mask, dim=1).mean().item() == pytest.approx(0.2471788, abs=1e-6)


def test_golden_distance_to_the_old_policy(a):  # k1 and k3 are logged, see test_grpo
    assert masked_mean(kl_k2(a.new, a.old, a.mask), a.mask).item() == pytest.approx(0.0479952, abs=1e-6)


@pytest.mark.parametrize("estimate", [kl_k1, kl_k2, kl_k3, kl_k3_plus])
def test_every_estimate_is_zero_for_equal_policies_and_k2_and_k3_are_never_negative(a, estimate):
    assert (estimate(a.new, a.new, a.mask) == 0).all()
    far = torch.linspace(-30, 0, 50)
    values = estimate(far, torch.full_like(far, -3.0), torch.ones(50, dtype=torch.bool))
    assert bool((values >= 0).all()) == (estimate is not kl_k1)


def test_far_apart_log_probabilities_stay_finite():
    assert torch.isfinite(kl_k3(torch.tensor([-500.0]), torch.tensor([0.0]), ALL[:1])).all()


def test_a_full_kl_in_the_loss_is_zero_under_the_mask(a):
    hparams = grpo.GRPOConfig(kl_coef=0.1, kl_estimator="full")
    full, grad = a.values.clone().requires_grad_(True), torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, NAN]])
    kl = kl_loss(hparams, a.new, None, full, torch.zeros_like(a.new), a.mask)
    close(kl.detach(), [[0.4, 0.3, 0.6], [0.5, 0.2, 0.0]])
    close(torch.autograd.grad(kl, full, grad.double())[0], [[1.0, 2.0, 3.0], [4.0, 5.0, 0.0]])


@pytest.mark.parametrize("kl_coef, estimator, full", [(0.5, "k3", False), (0.5, "full", True), (1.0e-6, "full", True)])
def test_any_coefficient_above_zero_needs_the_reference(kl_coef, estimator, full):
    hparams = grpo.GRPOConfig(kl_coef=kl_coef, kl_estimator=estimator)
    assert hparams.needs_reference and hparams.needs_full_kl is full


@pytest.mark.parametrize("estimator", get_args(KLEstimator))
def test_a_coefficient_of_zero_needs_none(estimator):
    hparams = grpo.GRPOConfig(kl_coef=0.0, kl_estimator=estimator)
    assert not hparams.needs_reference and not hparams.needs_full_kl


@pytest.mark.parametrize("estimator", get_args(KLEstimator))
def test_a_kl_loss_needs_what_it_compares_with(a, estimator):
    hparams = grpo.GRPOConfig(kl_coef=0.1, kl_estimator=estimator)
    advantages = torch.ones(2, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"needs the KL over the whole|needs a reference, got ref_logprobs None"):
        grpo.ALGORITHM.loss(a.new, a.old, advantages, a.mask, hparams, a.totals)


@pytest.mark.parametrize(
    "measured, expected",
    [
        (9.0, 0.201024),  # 9 / 6 - 1 = 0.5, clipped to 0.2: 0.2 (1 + 0.2 x 256 / 10,000)
        (1.0, 0.198976),  # clipped to -0.2
        (6.0, 0.2),
        (6.3, 0.200256),  # 0.05 is not clipped: 0.2 (1 + 0.05 x 0.0256)
    ],
)
def test_golden_adaptive_coefficient(measured, expected):
    assert adapt_coefficient(0.2, measured, 6.0, 256, 10_000) == pytest.approx(expected, abs=1e-9)
    hparams = ppo.PPOConfig(kl_coef=0.2, kl_target=6.0, kl_horizon=10_000)
    assert ppo.ALGORITHM.adapt(hparams, {"kl_to_ref_sequence": measured}, 256).kl_coef == pytest.approx(expected)


def test_a_log_ratio_ends_at_twenty():
    far = torch.tensor([-25.0, 25.0, 15.0], dtype=torch.float64)
    close(kl_k1(far, torch.zeros_like(far), ALL), [-20.0, 20.0, 15.0])


def test_without_a_target_the_coefficient_stays():
    hparams = ppo.PPOConfig(kl_coef=0.2)
    assert ppo.ALGORITHM.adapt(hparams, {"kl_to_ref_sequence": 100.0}, 256) is hparams
