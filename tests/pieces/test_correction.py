"""Trainer against sampler: golden numbers of sampler [0.2, 0.1, 0.5] against trainer [0.3, 0.25, 0.4]."""

import pytest
import torch
from golden import close, gradient

from algos import grpo, gspo
from algos.pieces import ratios
from algos.pieces.correction import gap_metrics, weights
from algos.pieces.types import Totals

SAMPLER, TRAINER = (
    torch.tensor([row], dtype=torch.float64).log() for row in ([0.2, 0.1, 0.5, 0.9], [0.3, 0.25, 0.4, 0.1])
)
MASK = torch.tensor([[True, True, True, False]])
A2 = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)


def hparams(mode: str, **settings):
    return grpo.GRPOConfig(correction=mode, **settings)


@pytest.mark.parametrize(
    "mode, expected",
    [  # w = 1.5, 2.5, 0.8; their product 3
        ("token_truncate", [1.5, 2.0, 0.8]),
        ("token_mask", [1.5, 0.0, 0.8]),
        ("sequence_truncate", [2.0, 2.0, 2.0]),
        ("sequence_mask", [0.0, 0.0, 0.0]),
        ("geometric_mask", [1.0, 1.0, 1.0]),  # the cube root of 3 is 1.4422496
    ],
)
def test_golden_weights(mode, expected):
    close(weights(TRAINER, SAMPLER, MASK, hparams(mode)), [[*expected, 0.0]])


def test_a_sequence_weight_is_the_product_where_it_is_inside_the_range():  # 1.5 x 2.5 x 0.8
    for mode in ("sequence_truncate", "sequence_mask"):
        close(weights(TRAINER, SAMPLER, MASK, hparams(mode, correction_high=4.0)), [[3.0, 3.0, 3.0, 0.0]])


@pytest.mark.parametrize("low, high, kept", [(1.442, 1.443, 1.0), (0.5, 1.442, 0.0), (1.443, 2.0, 0.0)])
def test_golden_geometric_mask(low, high, kept):  # the cube root of 3 is 1.4422496
    settings = hparams("geometric_mask", correction_low=low, correction_high=high)
    close(weights(TRAINER, SAMPLER, MASK, settings), [[kept, kept, kept, 0.0]])


def test_masks_drop_below_the_range_too_and_truncation_does_not():  # 0.8 < 0.9
    close(weights(TRAINER, SAMPLER, MASK, hparams("token_mask", correction_low=0.9)), [[1.5, 0.0, 0.0, 0.0]])
    close(weights(TRAINER, SAMPLER, MASK, hparams("token_truncate", correction_low=0.9)), [[1.5, 2.0, 0.8, 0.0]])


def test_golden_gap():
    got = gap_metrics(TRAINER, SAMPLER, MASK)
    assert got["sampler_kl_k1"].item() == pytest.approx(-0.3662041, abs=1e-6)  # mean of -log w
    assert got["sampler_kl_k3"].item() == pytest.approx(0.2337959, abs=1e-6)  # mean of w - 1 - log w
    assert got["sampler_gap_probability"].item() == pytest.approx(0.15)  # 0.25 - 0.1
    assert got["sampler_gap_largest"].item() == pytest.approx(0.9162907, abs=1e-6)  # log 2.5
    assert got["sampler_gap_mean"].item() == pytest.approx(0.5149665, abs=1e-6)  # (log 1.5 + log 2.5 - log 0.8) / 3
    assert got["sampler_gap_p50"].item() == pytest.approx(0.4054651, abs=1e-6)  # log 1.5
    assert got["sampler_gap_sequence"].item() == pytest.approx(0.3662041, abs=1e-6)
    assert ratios.sequence(TRAINER, SAMPLER, MASK).exp().item() == pytest.approx(1.4422496, abs=1e-6)  # cube root of 3


def test_golden_effective_sample_size():  # of weights 1.5, 2, 0.8: 4.3^2 / (3 x 6.89)
    sampler = SAMPLER.clone()
    sampler[0, 1] = torch.tensor(0.125, dtype=torch.float64).log()
    assert gap_metrics(TRAINER, sampler, MASK)["sampler_ess"].item() == pytest.approx(0.8945331, abs=1e-6)
    assert gap_metrics(TRAINER, TRAINER, MASK)["sampler_ess"].item() == pytest.approx(1.0)


def test_weights_multiply_the_policy_term_and_not_the_kl(a):
    """Fixture A's gradient of the policy term by token, times 2 where the sampler had half the probability."""
    factor = torch.tensor([[1.0, 2.0, 1.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
    sampler = a.old - factor.log()

    def run(**settings):
        return gradient(
            lambda x: grpo.ALGORITHM.loss(
                x, a.old, A2, a.mask, grpo.GRPOConfig(**settings), a.totals, a.ref, sampler_logprobs=sampler
            )[0],
            a.new,
        )[1]

    plain, with_kl = run(), run(kl_coef=0.04)
    settings = {"correction": "token_truncate", "correction_high": 5.0}
    close(run(**settings), plain * factor)
    close(run(**settings, kl_coef=0.04) - plain * factor, with_kl - plain)


def test_a_responses_one_ratio_takes_the_responses_weight(a):
    """GSPO's two terms -0.9573756 and 0.9997 times 2 (cut from 3) and 0.5, over 2 responses."""
    sampler = a.old.clone()
    sampler[0, 0] -= torch.tensor(3.0).log()
    sampler[1, 0] += torch.tensor(2.0).log()
    for mode, expected in (("sequence_truncate", -0.7074506), ("sequence_mask", 0.249925)):  # the mask drops 3
        settings = gspo.GSPOConfig(correction=mode, correction_low=0.4)
        loss, metrics = gspo.ALGORITHM.loss(a.new, a.old, A2, a.mask, settings, a.totals, sampler_logprobs=sampler)
        assert loss.item() == pytest.approx(expected, abs=1e-6)
        mean = (2 * 3 * (mode == "sequence_truncate") + 2 * 0.5) / 5
        assert metrics["correction_weight"].item() == pytest.approx(mean, abs=1e-6)


def test_weights_carry_no_gradient():
    assert not weights(TRAINER.clone().requires_grad_(True), SAMPLER, MASK, hparams("token_mask")).requires_grad


def test_the_gap_carries_no_gradient():
    got = gap_metrics(TRAINER.clone().requires_grad_(True), SAMPLER, MASK)
    assert not any(value.requires_grad for value in got.values())


def test_a_correction_needs_the_samplers_log_probabilities(a):
    with pytest.raises(ValueError, match="correction token_mask needs the sampler's log-probabilities, got None"):
        grpo.ALGORITHM.loss(a.new, a.old, A2, a.mask, hparams("token_mask"), a.totals)


def test_a_sampler_like_the_trainer_has_no_gap():
    got = gap_metrics(TRAINER, TRAINER, MASK)
    assert all(float(value) == 0 for name, value in got.items() if name != "sampler_ess")
    close(weights(TRAINER, TRAINER, MASK, hparams("sequence_mask")), [[1.0, 1.0, 1.0, 0.0]])
    assert Totals.of(MASK) == Totals(1, 3)


@pytest.mark.parametrize("bounds", [(1.0, 2.0), (0.5, 1.0)])
def test_a_weight_on_a_bound_is_inside(bounds):  # equal log-probabilities: w = exp(0) = 1
    low, high = bounds
    got = weights(TRAINER, TRAINER, MASK, hparams("token_mask", correction_low=low, correction_high=high))
    close(got, [[1.0, 1.0, 1.0, 0.0]])


@pytest.mark.parametrize("sign", [1, -1])
def test_a_sequences_weight_is_cut_at_20_nats(sign):  # 2 x 15 = 30 nats: exp(20), or exp(-20)
    old, mask = torch.full((1, 2), 15.0 * sign, dtype=torch.float64), torch.tensor([[True, True]])
    got = weights(old, torch.zeros_like(old), mask, hparams("sequence_truncate", correction_high=1e30))
    close(got.log(), [[20.0 * sign] * 2])


@pytest.mark.parametrize("gaps, std", [([0.1], 0.0), ([0.1, 0.3], 0.1414214)])  # |0.1 - 0.2| sqrt(2)
def test_the_spread_of_the_gap_needs_two_tokens(gaps, std):
    trainer = torch.tensor([gaps], dtype=torch.float64)
    metrics = gap_metrics(trainer, torch.zeros_like(trainer), torch.ones_like(trainer, dtype=torch.bool))
    assert metrics["sampler_gap_std"].item() == pytest.approx(std, abs=1e-6)
