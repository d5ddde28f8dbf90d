"""Clip-Cov and KL-Cov, by hand. A = +-1, ratios [[1.3, 0.6, 1.125], [0.7, 1.1]], log pi of 0.65, 0.15, 0.9, 0.28, 0.55.

log pi: -0.4307829, -1.8971200, -0.1053605, -1.2729657, -0.5978370, mean -0.8608132; the mean of A is 0.2.
Covariances: 0.8 (0.4300303, -1.0363068, 0.7554527) = 0.3440242, -0.8290454, 0.6043622 for the tokens of response 1,
-1.2 (-0.4121525, 0.2629762) = 0.4945830, -0.3155714 for those of response 2.
"""

from types import SimpleNamespace

import pytest
import torch
from golden import NAN, close, gradient

from algos import clip_cov

A2 = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)


def selected(a, entry, hparams):
    a.logprobs, a.advantages = a.new, A2
    return entry.select(a, hparams)


def run(a, entry, **settings):
    hparams = type(entry.defaults)(**settings)
    chosen = selected(a, entry, hparams)
    return lambda x: entry.loss(x, a.old, A2, a.mask, hparams, a.totals, selected=chosen)


def test_golden_covariances(a):
    a.logprobs, a.advantages = a.new, A2
    close(clip_cov.covariances(a), [[0.3440242, -0.8290454, 0.6043622], [0.4945830, -0.3155714, 0.0]])


@pytest.mark.parametrize(
    "share, low, loss, left_out",
    [
        (0.4, 0.3, 0.02, 0.2),  # without 1.125: the others above 0.3 are clipped already
        (1.0, -1.0, -0.08, 0.6),  # without 0.6, 1.125 and 1.1: all that no clip silences
        (1.0, 0.61, -0.205, 0.0),
        (0.0, -1.0, -0.205, 0.0),  # -(1.2 + 0.6 + 1.125 - 0.8 - 1.1) / 5
    ],
)
def test_golden_clip_cov(a, share, low, loss, left_out):
    value, metrics = run(a, clip_cov.ALGORITHM, cov_share=share, cov_low=low)(a.new)
    assert value.item() == pytest.approx(loss)
    assert metrics["left_out_fraction"].item() == pytest.approx(left_out)
    assert metrics["clip_fraction"].item() == pytest.approx(0.4)


def test_golden_clip_cov_leaves_the_largest_covariances_alone(a):
    """Of all tokens with a covariance in -1..0.5 that no clip silences, 0.6 and 1.1: -(1.2 + 1.125 - 0.8) / 5."""
    value, _ = run(a, clip_cov.ALGORITHM, cov_share=1.0, cov_low=-1.0, cov_high=0.5)(a.new)
    assert value.item() == pytest.approx(-0.305)


@pytest.mark.parametrize("share, loss", [(0.0, -0.245), (0.002, -0.2214434), (0.4, -0.1501084), (1.0, -0.0976356)])
def test_golden_kl_cov(a, share, loss):
    """-(1.3 + 0.6 + 1.125 - 0.7 - 1.1) / 5, and |log ratio| / 5 of the largest: 0.1177830, 0.3566749, 0.2623643.

    Two tokens have a negative covariance and are left alone even if all are asked for.
    """
    assert run(a, clip_cov.KL, cov_share=share)(a.new)[0].item() == pytest.approx(loss, abs=1e-6)


def test_golden_gradient_of_kl_cov(a):
    """-(ratio A - sign of log ratio) / 5 for the third token of response 1 and the first of response 2."""
    _, grad = gradient(lambda x: run(a, clip_cov.KL, cov_share=0.4)(x)[0], a.new)
    close(grad, [[-0.26, -0.12, -0.025], [-0.06, 0.22, 0.0]])


def many(rows=50, width=20):
    """1000 tokens, all of them candidates: half of them likely and good, half of them rare and bad."""
    good = torch.arange(rows)[:, None] % 2 == 0
    logprobs = torch.where(good, -0.1, -3.1).expand(rows, width).contiguous()
    mask = torch.ones(rows, width, dtype=torch.bool)
    mask[:, -1] = False
    logprobs[:, -1] = NAN
    return SimpleNamespace(
        logprobs=logprobs, old_logprobs=logprobs, advantages=torch.where(good, 1.0, -1.0), loss_mask=mask
    )


def test_clip_cov_draws_anywhere_among_its_candidates_and_always_the_same():
    """950 tokens, covariance 1.5 each: 1 % of them is 9.5, so 9 are drawn, from both halves of the batch."""
    batch, hparams = many(), clip_cov.ClipCovConfig(cov_share=0.01)
    drawn = ~clip_cov.free_tokens(batch, hparams)
    assert drawn.sum() == 9 and not drawn[:, -1].any()
    assert drawn[:25].any() and drawn[25:].any() and len(set(drawn.nonzero()[:, 1].tolist())) > 3
    assert torch.equal(drawn, ~clip_cov.free_tokens(batch, hparams))
    assert (~clip_cov.free_tokens(batch, clip_cov.ClipCovConfig())).sum() == 1  # 0.19 tokens: at least one


def test_a_step_of_equal_advantages_has_no_penalty():
    batch = many()
    batch.advantages = torch.ones_like(batch.advantages)
    assert not clip_cov.costly_tokens(batch, clip_cov.KLCovConfig(cov_share=1.0)).any()


def test_an_empty_range_is_refused():
    with pytest.raises(ValueError, match="cov_low 5 must be below cov_high 5"):
        clip_cov.ClipCovConfig(cov_low=5.0)
