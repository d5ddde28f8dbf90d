"""Fixture A: one prompt, G = B = 2 responses, T = 3 tokens, one cell of padding."""

from types import SimpleNamespace

import torch

from algos.pieces.types import Totals

NAN = float("nan")


def fixture_a(padding: float = NAN) -> SimpleNamespace:
    """Fixture A in float64, its padded cell holding `padding` in every tensor."""

    def log_of(rows):
        return torch.tensor(rows, dtype=torch.float64).log()

    mask = torch.tensor([[True, True, True], [True, True, False]])
    a = SimpleNamespace(
        mask=mask,
        group_size=2,
        old=log_of([[0.50, 0.25, 0.80], [0.40, 0.50, 1.0]]),
        new=log_of([[0.65, 0.15, 0.90], [0.28, 0.55, 1.0]]),
        ref=log_of([[0.50, 0.50, 0.80], [0.50, 0.50, 1.0]]),
        rewards=torch.tensor([1.0, 0.0], dtype=torch.float64),
        values=torch.tensor([[0.4, 0.3, 0.6], [0.5, 0.2, 0.0]], dtype=torch.float64),
        totals=Totals.of(mask),
    )
    for name in ("old", "new", "ref", "values"):
        getattr(a, name)[1, 2] = padding
    # as the algorithms see a batch
    a.old_logprobs, a.ref_logprobs, a.response_mask, a.loss_mask = a.old, a.ref, mask, mask
    a.greedy_rewards = a.full_kl = None
    return a


def close(got, expected, atol: float = 1e-6) -> None:
    """Golden numbers stand rounded to seven digits."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(got.double(), expected, atol=atol, rtol=0)


def gradient(loss, logprobs):
    """Gradient of loss(logprobs) at logprobs."""
    leaf = logprobs.clone().requires_grad_(True)
    value = loss(leaf)
    value.backward()
    return value.detach(), leaf.grad
