"""The output head by pieces: the same numbers and gradients as with all logits at once, and never all logits."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from algos.training.models.head import full_kl, pieces, token_statistics

N, H, V = 7, 5, 11


def inputs(bias: bool, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(H, V, bias=bias).to(dtype)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(generator=generator)
    states = torch.randn(N, H, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    targets = torch.randint(V, (N,), generator=generator)
    weights = torch.randn(2, N, generator=generator, dtype=torch.float64)
    return head, states, targets, weights


def results(head, states, targets, weights, entropy: bool, at_once):
    head.zero_grad()
    states.grad = None
    logprobs, entropies = token_statistics(head, states, targets, 0.7, entropy, at_once)
    loss = (weights[0] * logprobs).sum() + ((weights[1] * entropies).sum() if entropy else 0)
    loss.backward()
    own = [logprobs, entropies] if entropy else [logprobs]
    return own, [states.grad.clone(), *(p.grad.clone() for p in head.parameters())]


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("at_once", [1, V, 2 * V, 3 * V + 1, 6 * V])
def test_pieces_give_the_numbers_and_gradients_of_the_whole(bias, entropy, at_once, wrapped):
    head, states, targets, weights = inputs(bias)
    head = nn.Sequential(head) if wrapped else head  # not a linear layer to look at: by checkpoints
    expected = results(head, states, targets, weights, entropy, None)
    found = results(head, states, targets, weights, entropy, at_once)
    for group, others in zip(expected, found, strict=True):
        for one, other in zip(group, others, strict=True):
            torch.testing.assert_close(other, one, atol=1e-12, rtol=1e-10)


def test_gradients_by_finite_differences():
    head, states, targets, _ = inputs(True)

    def function(states, weight, bias):
        linear = nn.Linear(H, V).double()
        del linear.weight, linear.bias
        linear.weight, linear.bias = weight, bias
        return token_statistics(linear, states, targets, 0.7, True, 2 * V)

    arguments = [x.detach().clone().requires_grad_() for x in (states, head.weight, head.bias)]
    torch.autograd.gradcheck(function, arguments)


@pytest.mark.parametrize("direction", ["reverse", "forward"])
def test_full_kl_by_pieces(direction):
    head, states, *_ = inputs(False)
    ref = nn.Linear(H, V, bias=False).double().requires_grad_(False)
    found = []
    for at_once in (None, 2 * V):
        head.zero_grad()
        states.grad = None
        kl = full_kl(head, states, ref, states.detach(), 0.7, direction, at_once)
        (kl * torch.arange(N)).sum().backward()
        found.append((kl.detach(), states.grad.clone(), head.weight.grad.clone()))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    assert found[0][0].min() > 0


def test_a_frozen_head_gets_no_gradient():
    head, states, targets, weights = inputs(False)
    head.requires_grad_(False)
    logprobs, _ = token_statistics(head, states, targets, 1.0, False, V)
    (logprobs * weights[0]).sum().backward()
    assert head.weight.grad is None and states.grad.abs().sum() > 0


def test_bfloat16_states_give_float32_log_probabilities_and_a_weight_gradient_added_up_in_float32():
    """1,000 pieces of equal gradients: in bfloat16, adding would stop at 256 times one of them."""
    head = nn.Linear(2, 3, bias=False).to(torch.bfloat16)
    states = torch.ones(1000, 2, dtype=torch.bfloat16)
    logprobs, _ = token_statistics(head, states, torch.zeros(1000, dtype=torch.long), 1.0, False, 3)
    assert logprobs.dtype == torch.float32
    logprobs.sum().backward()
    one = torch.nn.functional.one_hot(torch.tensor(0), 3) - torch.softmax(head(states[:1]).float(), dim=-1)[0]
    expected = (1000 * one[:, None]).expand(3, 2)
    torch.testing.assert_close(head.weight.grad.float(), expected.detach(), atol=2.0, rtol=0.02)


class Largest(TorchDispatchMode):
    """The elements of the largest tensor that any operation returned."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_no_tensor_is_larger_than_a_piece():
    head, states, targets = nn.Linear(4, 1000, bias=False), torch.randn(64, 4, requires_grad=True), torch.arange(64)
    for at_once, largest in ((None, 64_000), (5000, 5000)):
        with Largest() as seen:
            logprobs, entropies = token_statistics(head, states, targets, 1.0, True, at_once)
            (logprobs + entropies).sum().backward()
        assert seen.elements == largest


def test_pieces_by_hand():
    assert pieces(7, 11, 25) == [slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 7)]
    assert pieces(7, 11, 5) == [slice(i, i + 1) for i in range(7)]  # at least one row
    assert pieces(7, 11, None) == [slice(0, 7)] and pieces(0, 11, 25) == []
