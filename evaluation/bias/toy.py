"""A toy policy small enough to enumerate, and the exact gradients that estimators are compared with.

The policy may think or answer. An answer ends the response, and the third token is the last one: seven responses of one
to three tokens. The policy is a table of logits for each prompt and prefix, so that expected rewards and KL divergences
are finite sums, and autograd gives their exact gradients.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from algos.pieces.kl import kl_full

LENGTH, THINK, ANSWERS = 3, 0, (1, 2)
CRITICS = ("exact", "constant", "wrong")


@dataclass(frozen=True)
class Toy:
    """P prompts, Y responses, T tokens, V tokens of vocabulary; float64, without gradient.

    A response that is not over has thought at every token, so that its length determines the prefix. So tables of
    prefixes are (P, T, ...).
    """

    tokens: Tensor  # (Y, T) int64, 0 on padding
    mask: Tensor  # (Y, T) bool
    rewards: Tensor  # (P, Y)
    correct: Tensor  # (P, Y) bool
    logits: Tensor  # (P, T, V) of the policy
    ref_logits: Tensor  # (P, T, V) of the reference
    direction: Tensor  # (P, T, V) of norm 1: the direction in which other policies lie
    wrong_values: Tensor  # (P, T)

    def logprobs(self, logits: Tensor) -> Tensor:
        """Log-probabilities of the tokens of all responses: (P, T, V) -> (P, Y, T), 0 on padding."""
        picked = torch.log_softmax(logits, dim=-1)[:, torch.arange(LENGTH), self.tokens]
        return picked.where(self.mask, logits.new_zeros(()))

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities of all responses: (P, T, V) -> (P, Y)."""
        return self.logprobs(logits).sum(dim=-1).exp()

    def values(self, critic: str, logits: Tensor) -> Tensor:
        """V(prefix), (P, T): exact: the expected reward; constant: 0.5 everywhere; wrong: unrelated random numbers."""
        if critic == "constant":
            return torch.full_like(self.wrong_values, 0.5)
        if critic == "wrong":
            return self.wrong_values
        visits = self.probabilities(logits)[:, :, None] * self.mask
        return (visits * self.rewards[:, :, None]).sum(dim=1) / visits.sum(dim=1)

    def greedy(self, logits: Tensor) -> Tensor:
        """The greedy response to each prompt: (P, T, V) -> (P,) int64."""
        best = logits.argmax(dim=-1)[:, None]  # (P, 1, T)
        return ((self.tokens == best) | ~self.mask).all(dim=-1).int().argmax(dim=-1)

    def moved(self, distance: float) -> Tensor:
        """Logits (P, T, V) at this Euclidean distance from the policy's."""
        return self.logits + distance * self.direction


def make_toy(seed: int = 0, prompts: int = 2, binary: bool = False) -> Toy:
    """Every second prompt is hard. A right answer earns 1 and each token 0.2, with noise added; binary: only 1 or 0."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    responses = [(THINK,) * k + (a,) for k in range(LENGTH) for a in ANSWERS] + [(THINK,) * LENGTH]
    mask = torch.tensor([[t < len(y) for t in range(LENGTH)] for y in responses])
    tokens = torch.tensor([list(y) + [0] * (LENGTH - len(y)) for y in responses])
    right = torch.tensor([ANSWERS[p % 2] for p in range(prompts)])
    correct = torch.tensor([y[-1] for y in responses]) == right[:, None]
    shaped = correct + 0.2 * mask.sum(dim=1) + 0.3 * noise(prompts, len(responses))
    logits = 0.5 * noise(prompts, LENGTH, 1 + len(ANSWERS))
    for p in range(prompts):
        logits[p, :, right[p]] += 1.0 if p % 2 == 0 else -1.0
    direction = noise(*logits.shape)
    return Toy(
        tokens,
        mask,
        rewards=correct.double() if binary else shaped,
        correct=correct,
        logits=logits,
        ref_logits=logits + 0.7 * noise(*logits.shape),
        direction=direction / direction.norm(),
        wrong_values=noise(prompts, LENGTH),
    )


def gradient_of(value: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    leaf = logits.clone().requires_grad_(True)
    return torch.autograd.grad(value(leaf), leaf)[0]


def expected_reward(toy: Toy, rewards: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """logits -> mean over prompts of the expected reward; rewards (P, Y), by default the toy's."""
    rewards = toy.rewards if rewards is None else rewards
    return lambda logits: (toy.probabilities(logits) * rewards).sum(dim=-1).mean()


def response_kl(toy: Toy) -> Callable[[Tensor], Tensor]:
    """logits -> KL(policy || reference) of whole responses, mean over prompts."""

    def value(logits):
        gap = (toy.logprobs(logits) - toy.logprobs(toy.ref_logits)).sum(dim=-1)
        return (toy.probabilities(logits) * gap).sum(dim=-1).mean()

    return value


def prefix_kl(toy: Toy, visited_by: Tensor, direction: str = "reverse") -> Callable[[Tensor], Tensor]:
    """logits -> sum over a response's tokens of the KL given the prefix; prefixes as the policy visited_by meets them.

    If visited_by is the policy itself, the value is the KL of whole responses. The gradient is partial: it leaves out
    that a token changes which prefixes come later (arXiv:2506.09477).
    """
    visits = (toy.probabilities(visited_by)[:, :, None] * toy.mask).sum(dim=1).detach()  # (P, T)
    reference = torch.log_softmax(toy.ref_logits, dim=-1)
    return lambda logits: (visits * kl_full(torch.log_softmax(logits, -1), reference, direction)).sum(dim=-1).mean()
