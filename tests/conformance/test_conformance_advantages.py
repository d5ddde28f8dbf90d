"""Every algorithm: its advantages depend on rewards and groups only, and a group of one is refused by name."""

from dataclasses import replace

import pytest
import torch
from cases import batch, every_default, make, moves, penalized, rows_of, step, with_advantages, with_keep

from algos import ALGORITHMS
from algos.pieces import advantages as pieces
from algos.pieces.settings import from_dict
from algos.training.config import RunConfig


@every_default
def test_the_order_of_groups_and_within_them_permutes_the_advantages(case):
    b = batch(case)
    groups = torch.tensor([2, 0, 1])
    order = (groups[:, None] * 4 + torch.tensor([1, 3, 0, 2])).flatten()
    permuted = rows_of(b, order)
    permuted.greedy_rewards = b.greedy_rewards[groups]
    got = with_advantages(case, permuted)
    for name in ("advantages", "returns"):
        torch.testing.assert_close(getattr(got, name), getattr(b, name)[order], atol=1e-12, rtol=1e-9)


@every_default
def test_the_last_valid_token_is_rewarded(case):  # row 3: wrong, 2 tokens of 5, the second one its end of sequence
    if hasattr(case.hparams, "entropy_share"):  # of all tokens, not of those with the highest entropy alone
        case = replace(case, hparams=replace(case.hparams, entropy_share=1.0))

    def gradient(case, right: bool):
        b = make(case.hparams, spread=0.0)
        b.correct[3], b.rewards[3] = right, 3.0 * right  # the best of its group
        return step(case, with_advantages(case, with_keep(b, case.hparams))).gradients["logprobs"][3]

    change = gradient(case, True) - gradient(case, False)
    assert abs(change[1]) > 1e-3 and (change[2:] == 0).all()
    if case.hparams.has_critic:  # without bootstrapping the reward is seen at the last token alone
        myopic = replace(case, hparams=replace(case.hparams, gae_lambda=0.0, scale="none"))
        change = gradient(myopic, True) - gradient(myopic, False)
        assert abs(change[1]) > 1e-3 and change[0] == 0


@every_default
def test_equal_rewards_are_finite_and_teach_a_group_baseline_nothing(case):
    hparams = replace(case.hparams, kl_coef=0.0, kl_target=None)  # a penalty in the reward would tell responses apart
    b = make(hparams, group_size=3, spread=0.0 if penalized(case) else 0.3)
    b.rewards, b.correct = torch.full_like(b.rewards, 0.1), torch.ones_like(b.correct)  # (0.1 + 0.1 + 0.1) / 3 > 0.1
    b.greedy_rewards = torch.full_like(b.greedy_rewards, 0.1)
    case = replace(case, hparams=hparams)
    b = with_advantages(case, with_keep(b, hparams))
    got = step(case, b)
    assert b.advantages.isfinite().all() and all(x.isfinite() for x in got.numbers.values())
    assert got.gradients["logprobs"].isfinite().all()
    if hparams.baseline in (*pieces.GROUP_BASELINES, "batch_mean", "greedy"):
        assert (b.advantages == 0).all() and (got.gradients["logprobs"] == 0).all()


@every_default
def test_a_group_of_one_is_accepted_or_refused_by_name(case, monkeypatch):
    monkeypatch.setitem(ALGORITHMS, case.name, case.algorithm)
    run = {"algorithm": case.name, "seed": 0, "prompts_per_step": 3, "group_size": 1, "minibatches": 1}
    b = make(case.hparams, lengths=(2, 5, 3), group_size=1)
    if case.hparams.min_group == 1:
        from_dict(RunConfig, run)
        got = step(case, with_advantages(case, b))
        assert got.numbers["loss"].isfinite() and got.gradients["logprobs"].isfinite().all() and moves(got)
        return
    with pytest.raises(ValueError, match=f"group_size must be at least 2 for {case.name}, got 1: a response is comp"):
        from_dict(RunConfig, run)
    with pytest.raises(ValueError, match="needs groups of at least 2 responses, got"):
        case.algorithm.advantages(b, case.hparams)
