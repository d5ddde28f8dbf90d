"""Every algorithm: its gradient is the gradient of its loss, and on-policy the plain policy gradient."""

from dataclasses import replace

import pytest
import torch
from cases import LEAVES, Case, batch, every, loss_mask, make, moves, penalized, step, with_advantages

from algos import cispo, topr, vespo
from algos.pieces.aggregation import aggregate
from algos.pieces.algorithm import Algorithm
from algos.pieces.correction import weights
from algos.pieces.types import Totals

# log pi times what is made of the ratio, without gradient
WEIGHTED = (cispo.truncated_objective, topr.tapered_objective, vespo.reshaped_objective)


@every
def test_on_the_first_step_ratios_are_1_and_the_gradient_is_the_plain_policy_gradient(case):
    b = batch(case, spread=0.0)
    got, mask, totals = step(case, b).numbers, loss_mask(b), Totals.of(loss_mask(b))
    for name, x in got.items():
        if "ratio" in name and name != "ratio_above":
            assert x == pytest.approx(1, abs=1e-12), name
        if name.startswith("approx_kl") or ("clip_fraction" in name and "value" not in name):
            assert x == 0, name
    logprobs = b.logprobs.clone().requires_grad_(True)
    hparams, policy = case.hparams, replace(case.hparams, kl_coef=0.0, kl_target=None, entropy_coef=0.0)
    selection = () if b.selected is None else (b.selected,)
    value, _ = case.algorithm.objective(logprobs, logprobs, b.advantages, mask, hparams, *selection)
    one_number = value.shape[1] == 1
    mode = "seq-mean-token-mean" if one_number else hparams.aggregation
    plain = b.advantages * torch.where(mask, logprobs, 0.0)
    if b.selected is not None and not penalized(case):
        plain = plain * b.selected
    if hparams.correction != "none":
        plain = plain * weights(b.old_logprobs, b.sampler_logprobs, mask, hparams)
    (-aggregate(plain, mask, mode, totals, hparams.aggregation_length)).backward()
    got = step(replace(case, hparams=policy), b).gradients["logprobs"]
    torch.testing.assert_close(got, logprobs.grad, atol=1e-12, rtol=1e-9)
    assert got.abs().max() > 1e-4


@every
def test_without_advantage_the_policy_term_has_no_gradient(case):
    case = replace(case, hparams=replace(case.hparams, kl_coef=0.0, kl_target=None, entropy_coef=0.0))
    b = batch(case, spread=0.0 if penalized(case) else 0.3)
    b.advantages = torch.zeros_like(b.advantages)
    assert (step(case, b).gradients["logprobs"] == 0).all()


@every
def test_nothing_but_policy_and_critic_gets_a_gradient(case):
    b = make(case.hparams)
    constant = ("old_logprobs", "ref_logprobs", "sampler_logprobs", "values", "rewards", "greedy_rewards")
    for name in constant:
        getattr(b, name).requires_grad_(True)
    b = with_advantages(case, b)
    if not b.advantages.requires_grad:
        b.advantages.requires_grad_(True)
        b.returns.requires_grad_(True)
    assert moves(step(case, b))
    for name in (*constant, "advantages", "returns"):
        assert not getattr(b, name).is_leaf or getattr(b, name).grad is None, name


def frozen(case: Case, b) -> Algorithm:
    """The algorithm with its stop-gradients written out as constants, so that finite differences see what it means."""
    start, mask, algorithm = torch.where(loss_mask(b), b.logprobs, 0.0), loss_mask(b), case.algorithm
    log_ratio = torch.where(mask, b.logprobs - b.old_logprobs, 0.0)
    if algorithm.objective in WEIGHTED:
        inner = algorithm.objective
        return replace(algorithm, objective=lambda _, logprobs, *rest: inner(log_ratio, logprobs, *rest))
    if case.hparams.ratio == "sequence_token":
        mean = log_ratio.sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)
        inner = algorithm.objective
        return replace(algorithm, objective=lambda _, x, *rest: inner(mean + x - start, x, *rest))
    return algorithm


@every
@pytest.mark.parametrize("spread", [0.3, 5.0e-4])  # where GRPO's clip range has some tokens outside, and where GSPO's
def test_gradients_are_those_of_finite_differences(case, spread):
    b = batch(case, lengths=(2, 3, 1, 3, 3, 1, 3, 2), width=3, spread=spread, seed=3)
    mask, hparams = loss_mask(b), case.hparams
    totals, algorithm, got = Totals.of(mask), frozen(case, b), step(case, b)

    def total(name, x):
        given = {leaf: x if leaf == name else getattr(b, leaf) for leaf in LEAVES}
        extra = {"entropies": given["entropies"], "full_kl": given["full_kl"]}
        extra |= {"ref_logprobs": b.ref_logprobs, "sampler_logprobs": b.sampler_logprobs, "selected": b.selected}
        if name == "new_values":
            return algorithm.value_loss(x, b.values, b.returns, mask, hparams, totals)[0]
        return algorithm.loss(given["logprobs"], b.old_logprobs, b.advantages, mask, hparams, totals, **extra)[0]

    used = ["logprobs"] + ["new_values"] * hparams.has_critic
    used += ["entropies"] * bool(hparams.entropy_coef) + ["full_kl"] * hparams.needs_full_kl
    for name in used:
        start, width = getattr(b, name), 1e-6
        expected = torch.zeros_like(start)
        for cell in mask.nonzero().tolist():
            nudge = torch.zeros_like(start)
            nudge[tuple(cell)] = width
            expected[tuple(cell)] = (total(name, start + nudge) - total(name, start - nudge)) / (2 * width)
        torch.testing.assert_close(got.gradients[name], expected, atol=1e-7, rtol=1e-5)
        assert expected.abs().max() > 1e-4, name
    assert all((x == 0).all() for name, x in got.gradients.items() if name not in used)
