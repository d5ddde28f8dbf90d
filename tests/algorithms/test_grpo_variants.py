"""Dr. GRPO, DAPO and Lite PPO: they are GRPO's objective with other choices."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from golden import close, gradient

from algos import dapo, dr_grpo, grpo, lite_ppo, maxrl

A2 = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)


def test_golden_dr_grpo(a):  # A = +-0.5, L = 4: -1.025 / 2 / 4 / 2, and twice that with A = +-1
    hparams = replace(dr_grpo.ALGORITHM.defaults, aggregation_length=4)
    advantages = dr_grpo.ALGORITHM.advantages(a, hparams)
    assert advantages.tolist() == [[0.5], [-0.5]]
    for given, expected in ((advantages, -0.0640625), (A2, -0.128125)):
        loss, _ = dr_grpo.ALGORITHM.loss(a.new, a.old, given, a.mask, hparams, a.totals)
        assert loss.item() == pytest.approx(expected, abs=1e-9)


def test_golden_dapo(a):  # [[-1.28, -0.6, -1.125], [0.8, 1.1]] over 5 tokens; with the symmetric range -0.205
    hparams = dapo.ALGORITHM.defaults
    loss, grad = gradient(lambda x: dapo.ALGORITHM.loss(x, a.old, A2, a.mask, hparams, a.totals)[0], a.new)
    assert loss.item() == pytest.approx(-0.221, abs=1e-9)
    close(grad, [[0.0, -0.12, -0.225], [0.0, 0.22, 0.0]])
    assert hparams.dynamic_sampling and hparams.kl_coef == 0 and dapo.ALGORITHM.run["rewards"] == {"overlong": 1.0}


def test_golden_maxrl(a):  # (1 - 1/2) / (1/2) = 1: [[-1.2, -0.6, -1.125], [0.8, 1.1]] over 5 tokens
    hparams = maxrl.ALGORITHM.defaults
    advantages = maxrl.ALGORITHM.advantages(a, hparams)
    close(advantages, [[1.0], [-1.0]], atol=1e-5)
    loss = maxrl.ALGORITHM.loss(a.new, a.old, advantages, a.mask, hparams, a.totals)[0]
    assert loss.item() == pytest.approx(-0.205, abs=1e-5)


def test_lite_ppo_divides_by_the_batchs_standard_deviation():
    """Rewards 1, 0 | 1, 1 have sample std 0.5: a group that is half right gets +-1, by its own std +-0.7071068."""
    batch = SimpleNamespace(
        rewards=torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64),
        response_mask=torch.ones(4, 1, dtype=torch.bool),
        group_size=2,
        greedy_rewards=None,
    )
    hparams = lite_ppo.ALGORITHM.defaults
    close(lite_ppo.ALGORITHM.advantages(batch, hparams), [[1.0], [-1.0], [0.0], [0.0]], atol=1e-5)
    close(grpo.ALGORITHM.advantages(batch, grpo.GRPOConfig()), [[0.7071068], [-0.7071068], [0.0], [0.0]], atol=1e-5)
    assert hparams.aggregation == "token-mean"
