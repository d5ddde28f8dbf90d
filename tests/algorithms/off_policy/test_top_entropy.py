"""Top-entropy tokens, by hand. A = +-1, ratios [[1.3, 0.6, 1.125], [0.7, 1.1]]."""

import pytest
import torch
from golden import NAN

from algos import top_entropy

A2 = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    "share, loss, left_out",
    [
        (0.2, -0.225, 0.8),  # 1.125, of entropy 2, alone
        (0.4, -0.065, 0.6),  # and 0.7, of entropy 1, whose clipped value is -0.8
        (0.3, -0.065, 0.6),  # the same: the quantile, 0.9, lies between 1 and 0.5
        (1.0, -0.221, 0.0),  # -(1.28 + 0.6 + 1.125 - 0.8 - 1.1) / 5
    ],
)
def test_golden_loss(a, share, loss, left_out):
    a.entropies = torch.tensor([[0.1, 0.3, 2.0], [1.0, 0.5, NAN]], dtype=torch.float64)
    hparams = top_entropy.TopEntropyConfig(entropy_share=share)
    selected = top_entropy.uncertain_tokens(a, hparams)
    value, metrics = top_entropy.ALGORITHM.loss(a.new, a.old, A2, a.mask, hparams, a.totals, selected=selected)
    assert value.item() == pytest.approx(loss)
    assert metrics["left_out_fraction"].item() == pytest.approx(left_out)


def test_responses_that_do_not_count_are_not_ranked(a):
    a.entropies = torch.tensor([[0.1, 0.3, 2.0], [5.0, 6.0, 7.0]])
    a.loss_mask = a.mask & torch.tensor([[True], [False]])
    hparams = top_entropy.TopEntropyConfig()
    assert top_entropy.uncertain_tokens(a, hparams)[0].tolist() == [False, False, True]
    a.loss_mask = torch.zeros_like(a.mask)
    assert not top_entropy.uncertain_tokens(a, hparams).any()
