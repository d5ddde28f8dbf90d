"""GMPO, by hand."""

import pytest
import torch
from golden import close, gradient

from algos import gmpo
from algos.pieces.types import Totals

A2 = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)


def run(a, clip_log):
    hparams = gmpo.GMPOConfig(clip_log=clip_log)
    return lambda x: gmpo.ALGORITHM.loss(x, a.old, A2, a.mask, hparams, a.totals)


@pytest.mark.parametrize(
    "clip_log, means, loss",
    [  # 0.4: -0.51 with A > 0 is not clipped. 0.2: y = [[0.2, -0.5108256, 0.1177830], [-0.2, 0.0953102]]
        (0.4, [[0.9573756], [0.8774964]], -0.0399396),
        (0.2, [[0.9376791], [0.9490015]], 0.0056612),
    ],
)
def test_golden_geometric_means_and_loss(a, clip_log, means, loss):  # -(GM_1 - GM_2) / 2
    log_ratio = torch.where(a.mask, a.new - a.old, 0.0)
    value, _ = gmpo.geometric_objective(log_ratio, a.new, A2, a.mask, gmpo.GMPOConfig(clip_log=clip_log))
    close(value * A2, means)
    assert run(a, clip_log)(a.new)[0].item() == pytest.approx(loss, abs=1e-6)


def test_a_clipped_token_has_no_gradient_and_the_others_that_of_the_mean(a):
    """-A GM / (T B): -0.9376791 / 6 and 0.9490015 / 4. Clipped: 0.26 > 0.2 with A > 0, -0.36 < -0.2 with A < 0."""
    _, grad = gradient(lambda x: run(a, 0.2)(x)[0], a.new)
    close(grad, [[0.0, -0.1562799, -0.1562799], [0.0, 0.2372504, 0.0]])
    metrics = run(a, 0.2)(a.new)[1]
    assert metrics["clip_fraction"].item() == pytest.approx(0.4)
    assert metrics["clip_fraction_low"].item() == metrics["clip_fraction_high"].item() == pytest.approx(0.2)


@pytest.mark.parametrize(
    "log_ratio, advantage, low, high",
    [  # range 0.25: on the bound is inside; outside only what pushes further out is clipped
        (0.5, 0.5, 0, 1),
        (0.5, 0.0, 0, 0),
        (0.5, -0.5, 0, 0),
        (0.25, 0.5, 0, 0),
        (-0.5, -0.5, 1, 0),
        (-0.5, 0.0, 0, 0),
        (-0.5, 0.5, 0, 0),
        (-0.25, -0.5, 0, 0),
    ],
)
def test_what_is_counted_as_clipped(log_ratio, advantage, low, high):
    one, hparams = torch.ones(1, 1, dtype=torch.bool), gmpo.GMPOConfig(clip_log=0.25)
    new, advantages = torch.tensor([[log_ratio]]), torch.tensor([[advantage]])
    _, metrics = gmpo.ALGORITHM.loss(new, torch.zeros(1, 1), advantages, one, hparams, Totals(1, 1))
    assert (metrics["clip_fraction_low"], metrics["clip_fraction_high"]) == (low, high)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"ratio": "sequence"}, "ratio must be token, got sequence"),
        ({"scale": "whiten"}, "one advantage per response, got .*scale whiten"),
        ({"clip_log": 0.0}, r"clip_log must be above 0, got 0\.0"),
        ({"correction": "token_truncate"}, "correction token_truncate weighs tokens"),
    ],
)
def test_what_contradicts_a_mean_over_the_response_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        gmpo.GMPOConfig(**settings)
