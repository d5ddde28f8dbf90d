"""The output head on N states, without the N x V logits: a few rows at a time, computed again for the gradient.

With a vocabulary of 150,000, the logits of 4,096 tokens are 2.5 GB in float32, and autograd keeps about three such
tensors: more than a small model's weights, gradients and optimizer state together. Only three numbers a token are kept.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from algos.pieces.kl import kl_full
from algos.training.config import LOGITS_AT_ONCE


def head_logits(head, states: Tensor, temperature: float) -> Tensor:
    """Logits (n, V) of states (n, H) at a temperature, in float32 or float64."""
    logits = head(states)
    return (logits if logits.dtype == torch.float64 else logits.float()) / temperature


def pieces(rows: int, vocabulary: int, at_once: int | None) -> list[slice]:
    """Slices of `rows` rows whose logits have at most `at_once` elements each (None: no limit), at least one row."""
    size = rows if at_once is None else max(at_once // vocabulary, 1)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, max(size, 1))]


def token_statistics(
    head, states: Tensor, targets: Tensor, temperature: float, entropy: bool, at_once: int | None = LOGITS_AT_ONCE
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities (N,) of target tokens (N,) after states (N, H) and, if asked for, entropies (N,); in nats."""
    slices = pieces(len(states), head(states[:0]).shape[-1], at_once)
    if len(slices) <= 1:
        return _statistics(head, states, targets, temperature, entropy)
    if type(head) is nn.Linear:
        logprobs, entropies = _Pieces.apply(
            states, head.weight, head.bias, targets, temperature, entropy, slices, torch.is_grad_enabled()
        )
        return logprobs, entropies if entropy else None
    parts = [_again(_statistics, head, states[s], targets[s], temperature, entropy) for s in slices]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]) if entropy else None


def full_kl(
    head,
    states: Tensor,
    ref_head,
    ref_states: Tensor,
    temperature: float,
    direction: str,
    at_once: int | None = LOGITS_AT_ONCE,
) -> Tensor:
    """KL (N,) in nats between the distributions of two heads on their states (N, H); no gradient into the reference."""

    def piece(own, theirs):
        with torch.no_grad():
            ref = torch.log_softmax(head_logits(ref_head, theirs, temperature), dim=-1)
        return kl_full(torch.log_softmax(head_logits(head, own, temperature), dim=-1), ref, direction)

    slices = pieces(len(states), head(states[:0]).shape[-1], at_once)
    if len(slices) <= 1:
        return piece(states, ref_states)
    return torch.cat([_again(piece, states[s], ref_states[s]) for s in slices])


def _again(function, *inputs):
    """function(*inputs), computed again in the backward pass instead of kept."""
    if not torch.is_grad_enabled():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


def _statistics(head, states, targets, temperature, entropy) -> tuple[Tensor, Tensor | None]:
    logits = head_logits(head, states, temperature)  # (n, V)
    normalizer = logits.logsumexp(dim=-1)
    logprobs = logits.gather(-1, targets[:, None]).squeeze(-1) - normalizer
    if not entropy:
        return logprobs, None
    all_logprobs = logits - normalizer[:, None]
    return logprobs, -(all_logprobs.exp() * all_logprobs).sum(dim=-1)


class _Pieces(torch.autograd.Function):
    """_statistics of a linear head by pieces, with d logp_y / d z_j = [j = y] - p_j, d H / d z_j = -p_j (log p_j + H).

    The weight's gradient is added up in float32 or float64, whatever the weight's type.
    """

    @staticmethod
    def forward(ctx, states, weight, bias, targets, temperature, entropy, slices, keep):
        exact = torch.float64 if states.dtype == torch.float64 else torch.float32
        logprobs, normalizers, entropies = (states.new_zeros(len(states), dtype=exact) for _ in range(3))
        for s in slices:
            logits = _linear_logits(states[s], weight, bias, temperature)
            normalizers[s] = logits.logsumexp(dim=-1)
            logprobs[s] = logits.gather(-1, targets[s, None]).squeeze(-1) - normalizers[s]
            if entropy:
                logits -= normalizers[s, None]
                entropies[s] = -torch.linalg.vecdot(logits.exp(), logits)
        if keep:
            ctx.save_for_backward(states, weight, bias, targets, normalizers, entropies)
            ctx.temperature, ctx.entropy, ctx.slices = temperature, entropy, slices
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx, by_logprob, by_entropy):
        states, weight, bias, targets, normalizers, entropies = ctx.saved_tensors
        wants_states, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_states = torch.empty_like(states) if wants_states else None
        grad_weight = torch.zeros_like(weight, dtype=normalizers.dtype) if wants_weight else None
        grad_bias = torch.zeros_like(bias, dtype=normalizers.dtype) if bias is not None and wants_bias else None
        for s in ctx.slices:
            logprobs = _linear_logits(states[s], weight, bias, ctx.temperature).sub_(normalizers[s, None])
            slope = logprobs.exp()  # (n, V), made into the gradient of the logits in place
            if ctx.entropy:
                logprobs.add_(entropies[s, None]).mul_(by_entropy[s, None]).add_(by_logprob[s, None])
                slope.mul_(logprobs).neg_()
            else:
                slope.mul_(-by_logprob[s, None])
            del logprobs
            slope.scatter_add_(1, targets[s, None], by_logprob[s, None])
            slope = slope.div_(ctx.temperature)
            if grad_bias is not None:
                grad_bias += slope.sum(dim=0)
            slope = slope.to(states.dtype)
            if grad_states is not None:
                grad_states[s] = slope @ weight
            if wants_weight:
                grad_weight += slope.T @ states[s]
        cast = [g if g is None else g.to(weight.dtype) for g in (grad_weight, grad_bias)]
        return grad_states, *cast, None, None, None, None, None


def _linear_logits(states, weight, bias, temperature) -> Tensor:
    logits = nn.functional.linear(states, weight, bias)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits.div_(temperature) if temperature != 1 else logits
