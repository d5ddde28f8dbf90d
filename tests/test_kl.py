"""Golden numbers of section 5: p = [0.5, 0.3, 0.2] against q = [0.25, 0.25, 0.5], and Fixture A."""

import pytest
import torch

from algos.kl import kl_k1, kl_k2, kl_k3
from algos.masked import masked_mean

P, Q = (torch.tensor(p, dtype=torch.float64) for p in ([0.5, 0.3, 0.2], [0.25, 0.25, 0.5]))
ALL = torch.ones(3, dtype=torch.bool)


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
    torch.testing.assert_close(got, torch.tensor(values, dtype=torch.float64), atol=1e-6, rtol=0)
    assert (P * got).sum().item() == pytest.approx(mean, abs=1e-6)
    assert (P * got**2).sum().item() - mean**2 == pytest.approx(variance, abs=1e-6)


@pytest.mark.parametrize(
    "estimate, expected",
    [(kl_k1, [0.0, 0.0, 0.0]), (kl_k2, [0.2375676, -0.0107071, -0.2268605]), (kl_k3, [0.25, 0.05, -0.30])],
)
def test_golden_expected_gradients_as_losses(estimate, expected):  # k2: true reverse KL; k3: p - q, the forward one
    z = P.log().clone().requires_grad_(True)
    logprobs = torch.log_softmax(z, dim=0)
    (P * estimate(logprobs, Q.log(), ALL)).sum().backward()
    torch.testing.assert_close(z.grad, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)


def test_golden_fixture_a(a):
    assert masked_mean(kl_k1(a.new, a.ref, a.mask), a.mask).item() == pytest.approx(-0.2616668, abs=1e-6)
    assert masked_mean(kl_k2(a.new, a.ref, a.mask), a.mask).item() == pytest.approx(0.1877532, abs=1e-6)
    k3 = kl_k3(a.new, a.ref, a.mask)
    assert masked_mean(k3, a.mask).item() == pytest.approx(0.2755849, abs=1e-6)
    assert masked_mean(k3, a.mask, dim=1).mean().item() == pytest.approx(0.2471788, abs=1e-6)
    assert (k3 >= 0).all()


def test_far_apart_log_probabilities_stay_finite():
    assert torch.isfinite(kl_k3(torch.tensor([-500.0]), torch.tensor([0.0]), ALL[:1])).all()
