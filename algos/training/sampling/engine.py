"""What every engine can do: it turns prompts and a policy into rollouts with their log-probabilities."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from algos.pieces.types import Rollouts


class StaleWeights(RuntimeError):
    """The engine sampled, or was about to sample, from other weights than the policy's."""


@dataclass(frozen=True)
class Sampling:
    """How responses are sampled."""

    group_size: int  # G, responses to each prompt
    max_response_tokens: int  # T
    temperature: float = 1.0  # 0: greedy, with log-probabilities of 0


class Engine(ABC):
    """Samples responses of a policy, that which it is given or an equal copy of it; close is called at the end.

    synchronize is called after the updates of every step, or of every k-th where sync_every is k.
    """

    exact: bool  # its log-probabilities come from the trainer's own model: they are the trainer's but for rounding

    @abstractmethod
    def sample(self, policy, prompts: list[list[int]], sampling: Sampling, generator: torch.Generator) -> Rollouts:
        """G responses to each of P prompts, with their log-probabilities, on the policy's device.

        A response ends with its first end-of-sequence token, or is truncated. generator lives on the policy's device;
        the same state of it and the same weights give the same responses. Raises StaleWeights if the engine holds other
        weights than the policy.
        """

    @abstractmethod
    def synchronize(self, policy) -> None:
        """Take over the policy's weights."""

    @abstractmethod
    def close(self) -> None:
        """Give back what the engine holds."""
