"""Distillation: the divergences by hand."""

import math

import pytest
import torch
from tiny import tiny_tokenizer

from algos import distillation
from algos.pieces.types import Totals

TOKENIZER = tiny_tokenizer()
PROMPTS = [[5, 6, 7, 8, 9], [10, 11, 12]]
LENGTHS = [4, 7, 1, 5, 6, 3, 7, 2]
ONE = torch.tensor([[True]])
P, Q = torch.tensor([[[0.7, 0.3]]], dtype=torch.float64).log(), torch.zeros(1, 1, 2, dtype=torch.float64)  # logits


def value_and_gradient(beta: float, p=P, q=Q, mask=ONE, temperature: float = 1.0):
    leaf = q.clone().requires_grad_(True)
    values = distillation.divergence(p, leaf, mask, beta, temperature)
    values.sum().backward()
    return values.detach(), leaf.grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "beta, expected", [(0, 0.0822829), (1, 0.0871767), (0.5, 0.0210059), (0.1, 0.0074281), (0.9, 0.0077769)]
)
def test_golden_divergences(beta, expected, dtype):  # P = [0.7, 0.3], Q = [0.5, 0.5]
    values, _ = value_and_gradient(beta, P.to(dtype), Q.to(dtype))
    assert values.item() == pytest.approx(expected, abs=2e-7)


def test_golden_gradients_at_the_students_logits():
    """Forward: Q - P. Reverse: Q (log(Q / P) - KL(Q || P)) = 0.5 (log(5 / 7) - 0.0871767) = -0.2118245."""
    for beta, expected in ((0, [-0.2, 0.2]), (1, [-0.2118245, 0.2118245])):
        torch.testing.assert_close(
            value_and_gradient(beta)[1][0, 0], torch.tensor(expected, dtype=torch.float64), atol=1e-7, rtol=0
        )


def test_divided_by_beta_the_jsd_tends_to_the_forward_kl_and_by_one_minus_beta_to_the_reverse():
    (forward, forward_gradient), (reverse, reverse_gradient) = value_and_gradient(0), value_and_gradient(1)
    small, small_gradient = value_and_gradient(1e-5)
    large, large_gradient = value_and_gradient(1 - 1e-5)
    for got, expected in (
        (small, forward),
        (small_gradient, forward_gradient),
        (large, reverse),
        (large_gradient, reverse_gradient),
    ):
        torch.testing.assert_close(got / 1e-5, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("beta", [0, 0.3, 1])
def test_gradients_are_those_of_finite_differences_and_the_teacher_has_none(beta):
    generator = torch.Generator().manual_seed(0)
    p, q = torch.randn(2, 2, 3, 5, dtype=torch.float64, generator=generator).unbind(0)
    p, q, mask = (
        p.requires_grad_(True),
        q.requires_grad_(True),
        torch.tensor([[True, True, True], [True, False, False]]),
    )
    assert torch.autograd.gradcheck(lambda student: distillation.divergence(p, student, mask, beta, 0.7), (q,))
    distillation.divergence(p, q, mask, beta).sum().backward()
    assert p.grad is None and q.grad.abs().max() > 1e-3


@pytest.mark.parametrize("padding", [float("nan"), float("inf"), 7.0])
@pytest.mark.parametrize("beta", [0, 0.5, 1])
def test_what_lies_under_the_mask_has_no_effect(beta, padding):
    mask = torch.tensor([[True, False]])
    p, q = (torch.cat([logits, torch.full_like(logits, padding)], dim=1) for logits in (P, Q))
    values, gradient = value_and_gradient(beta, p, q, mask)
    alone, alone_gradient = value_and_gradient(beta)
    assert values.tolist() == [[alone.item(), 0.0]]
    assert torch.equal(gradient[:, :1], alone_gradient) and gradient[:, 1].tolist() == [[0.0, 0.0]]
    ids, totals = torch.zeros(1, 2, dtype=torch.long), Totals.of(mask)
    metrics = distillation.diagnostics(p, q, ids, mask, 1.0, totals)
    assert metrics["forward_kl"].item() == pytest.approx(0.0822829, abs=1e-7)


def test_temperature_divides_both_sides_logits():
    halved = value_and_gradient(0.5, 2 * P, 2 * Q + 3, temperature=2.0)[0]  # a constant on all logits changes nothing
    torch.testing.assert_close(halved, value_and_gradient(0.5)[0])


def test_extreme_logits_stay_finite_in_float32():
    p, q = torch.tensor([[[300.0, 0.0, -300.0]]]), torch.tensor([[[-300.0, 0.0, 300.0]]])
    for beta in (0, 1e-4, 0.5, 1):
        values, gradient = value_and_gradient(beta, p, q)
        assert values.isfinite().all() and gradient.isfinite().all()
    assert value_and_gradient(0.5, p, q)[0].item() == pytest.approx(math.log(2), abs=1e-6)  # the JSD's largest value


def test_bad_betas_and_different_vocabularies_are_refused():
    with pytest.raises(ValueError, match=r"beta must be in 0\.\.1, got 1\.5"):
        distillation.divergence(P, Q, ONE, 1.5)
    with pytest.raises(ValueError, match="one vocabulary"):
        distillation.divergence(P, torch.zeros(1, 1, 3), ONE, 0.5)


def test_golden_advantage_of_on_policy_distillation():  # log(0.4 / 0.25)
    teacher, student = torch.tensor([[0.4, 0.1]]).log(), torch.tensor([[0.25, float("nan")]]).log().requires_grad_()
    mask = torch.tensor([[True, False]])
    advantages = distillation.token_advantages(teacher, student, mask)
    assert advantages[0].tolist() == [pytest.approx(0.4700036, abs=1e-6), 0.0] and not advantages.requires_grad
    loss = distillation.policy_gradient_loss(teacher, student, mask, Totals.of(mask))
    assert loss.item() == pytest.approx(0.6515633, abs=1e-6)  # -0.4700036 log 0.25, over one token
    loss.backward()  # likelier under the teacher: raise its log-probability
    assert student.grad[0].tolist() == [pytest.approx(-0.4700036, abs=1e-6), 0.0]


def test_the_policy_gradient_is_the_reverse_kls_in_expectation():
    """Summed over all tokens of the vocabulary, each weighted with the probability that the student samples it."""
    generator = torch.Generator().manual_seed(1)
    teacher, logits = torch.randn(2, 1, 1, 6, dtype=torch.float64, generator=generator).unbind(0)
    student = logits.clone().requires_grad_(True)
    all_logprobs = torch.log_softmax(student, dim=-1)
    for token in range(6):
        own, theirs = all_logprobs[..., token], torch.log_softmax(teacher, dim=-1)[..., token]
        loss = distillation.policy_gradient_loss(theirs, own, ONE, Totals.of(ONE))
        (own.exp().detach() * loss).sum().backward(retain_graph=True)
    torch.testing.assert_close(student.grad, value_and_gradient(1, teacher, logits)[1])


def test_diagnostics_by_hand():
    totals = Totals(1, 2)  # this token is one of the step's two
    metrics = distillation.diagnostics(P, Q, torch.tensor([[1]]), ONE, 1.0, totals)
    expected = {
        "forward_kl": 0.0822829 / 2,
        "reverse_kl": 0.0871767 / 2,
        "entropy": math.log(2) / 2,
        "teacher_entropy": -(0.7 * math.log(0.7) + 0.3 * math.log(0.3)) / 2,
        "student_logprob": math.log(0.5) / 2,
        "teacher_logprob": math.log(0.3) / 2,
    }
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(expected, abs=1e-6)


def test_diagnostics_carry_no_gradient():
    metrics = distillation.diagnostics(P, Q.clone().requires_grad_(True), torch.tensor([[1]]), ONE, 1.0, Totals(1, 1))
    assert not any(value.requires_grad for value in metrics.values())


def test_diagnostics_are_of_the_tempered_distributions():  # log 4 at temperature 2 is log 2: (2/3, 1/3), 0.6365142 nats
    logits = torch.tensor([[[4.0, 1.0]]], dtype=torch.float64).log()
    flat, mask, ids = torch.zeros_like(logits), torch.tensor([[True]]), torch.tensor([[0]])
    student = distillation.diagnostics(flat, logits, ids, mask, 2.0, Totals.of(mask))
    teacher = distillation.diagnostics(logits, flat, ids, mask, 2.0, Totals.of(mask))
    assert student["entropy"].item() == teacher["teacher_entropy"].item() == pytest.approx(0.6365142, abs=1e-7)
    assert student["student_logprob"].item() == pytest.approx(-0.4054651, abs=1e-7)  # log 2/3
