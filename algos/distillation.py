"""Distillation on a shared vocabulary: divergences of teacher and student at each token, also as a policy gradient.

Sources: Agarwal et al. 2024 (GKD), arXiv:2306.13649, section 3 and equation 1; forward and reverse KL as its ends.
P is the teacher's next-token distribution, Q the student's, both at one temperature. No gradient flows through the
sampling of the student's text, nor into the teacher.

    beta 0          KL(P || Q), forward: the student covers every mode of the teacher
    beta 1          KL(Q || P), reverse: the student seeks a mode
    in between      beta KL(P || M) + (1 - beta) KL(Q || M), M = beta P + (1 - beta) Q

The generalized JSD itself is 0 at both ends. Divided by beta it tends to the forward KL as beta tends to 0; divided by
1 - beta it tends to the reverse KL as beta tends to 1 (section 3 of the paper). So both ends are cases of their own, as
in the paper and in TRL.
"""

import math

import torch
from torch import Tensor

from algos.pieces.kl import kl_full
from algos.pieces.masked import masked_sum
from algos.pieces.types import Totals


def divergence(
    teacher_logits: Tensor, student_logits: Tensor, mask: Tensor, beta: float, temperature: float = 1.0
) -> Tensor:
    """Divergence of teacher and student at each token, over the full vocabulary, in nats: (B, T), 0 on padding.

    teacher_logits, student_logits  (B, T, V)  finite where the mask is True; the teacher's get no gradient
    mask                            (B, T)     bool; values where the mask is False have no effect, not even NaN
    beta                            in 0..1    0 forward KL, 1 reverse KL, else the generalized JSD
    Raises ValueError for a beta outside 0..1, and for logits of different shapes, that is, different vocabularies.
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must be in 0..1, got {beta}")
    if teacher_logits.shape != student_logits.shape:
        raise ValueError(
            f"teacher and student must have one vocabulary, got logits of shape {tuple(teacher_logits.shape)} and "
            f"{tuple(student_logits.shape)}"
        )
    p = torch.log_softmax(teacher_logits.detach()[mask] / temperature, dim=-1)  # (N, V): the selected tokens only
    q = torch.log_softmax(student_logits[mask] / temperature, dim=-1)
    if beta == 0:
        values = kl_full(p, q)  # KL(first || second)
    elif beta == 1:
        values = kl_full(q, p)
    else:
        mixture = torch.logaddexp(p + math.log(beta), q + math.log1p(-beta))
        values = beta * kl_full(p, mixture) + (1 - beta) * kl_full(q, mixture)
    return values.new_zeros(mask.shape).masked_scatter(mask, values)


def loss(
    teacher_logits: Tensor, student_logits: Tensor, mask: Tensor, beta: float, temperature: float, totals: Totals
) -> Tensor:
    """One micro-batch's part of the divergence, averaged over the tokens of the whole optimizer step."""
    values = divergence(teacher_logits, student_logits, mask, beta, temperature)
    return masked_sum(values, mask) / totals.response_tokens


def token_advantages(teacher_logprobs: Tensor, student_logprobs: Tensor, mask: Tensor) -> Tensor:
    """log P - log Q of the tokens that the student sampled: (B, T), in nats, no gradient, 0 on padding.

    Taken as a reward per token at discount 0, its policy gradient is an unbiased estimate of the gradient of the
    per-token reverse KL. It needs one sampled token in place of the whole vocabulary.
    """
    return torch.where(mask, teacher_logprobs - student_logprobs, torch.zeros_like(student_logprobs)).detach()


def policy_gradient_loss(teacher_logprobs: Tensor, student_logprobs: Tensor, mask: Tensor, totals: Totals) -> Tensor:
    """REINFORCE on token_advantages, for tokens sampled from the current student; log-probabilities (B, T), in nats."""
    advantages = token_advantages(teacher_logprobs, student_logprobs, mask)
    return -masked_sum(advantages * student_logprobs, mask) / totals.response_tokens


@torch.no_grad()
def diagnostics(
    teacher_logits: Tensor,
    student_logits: Tensor,
    response_ids: Tensor,
    mask: Tensor,
    temperature: float,
    totals: Totals,
) -> dict[str, Tensor]:
    """Means over the step's tokens, in nats, that add up over micro-batches.

    On text of the teacher, forward_kl is the teacher-forced KL. On text of the student, reverse_kl is the per-token KL
    that on-policy distillation lowers, and teacher_logprob says how likely the teacher finds the student's text.
    """
    p = torch.log_softmax(teacher_logits[mask] / temperature, dim=-1)  # (N, V)
    q = torch.log_softmax(student_logits[mask] / temperature, dim=-1)
    tokens = response_ids[mask][:, None]
    sums = {
        "forward_kl": kl_full(p, q),
        "reverse_kl": kl_full(q, p),
        "entropy": -(q.exp() * q).sum(dim=-1),
        "teacher_entropy": -(p.exp() * p).sum(dim=-1),
        "student_logprob": q.gather(1, tokens),
        "teacher_logprob": p.gather(1, tokens),
    }
    return {name: values.sum() / totals.response_tokens for name, values in sums.items()}
