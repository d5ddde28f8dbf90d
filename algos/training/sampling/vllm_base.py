"""What both ways of running vLLM share: requests, the comparison of weights, and answers as rollouts.

Both sample at the run's temperature and nothing else (no top-k, top-p, penalties or defaults of the model), report the
log-probability under the distribution drawn from, and compute the prompt of a group once (prefix caching).
"""

from abc import abstractmethod

import torch

from algos.pieces.types import Rollouts
from algos.training.models.lora import merged
from algos.training.models.tokens import end_ids
from algos.training.sampling.engine import Engine, Sampling, StaleWeights
from algos.training.sampling.fingerprint import differing, fingerprint

EXTENSION = "algos.training.sampling.vllm_worker.Weights"  # what vLLM mixes into its worker
SEEDS = 1 << 62  # vLLM adds the response's number to its prompt's seed


class VllmEngine(Engine):
    """Both ways of running vLLM: its weights are compared with the policy's before anything is sampled from them."""

    exact = False

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def sample(self, policy, prompts: list[list[int]], sampling: Sampling, generator: torch.Generator) -> Rollouts:
        if not prompts or any(not prompt for prompt in prompts):
            raise ValueError("sampling needs at least one prompt, and no prompt may be empty")
        self.wake()
        self.compare(policy)
        self.forget()
        seeds = torch.randint(SEEDS, (len(prompts),), generator=generator, device=generator.device).tolist()
        requests = [request(end_ids(self.tokenizer), sampling, seed) for seed in seeds]
        groups = self.generate(prompts, requests)
        self.rest()
        responses = [response for group in groups for response in group]
        return as_rollouts(prompts, sampling, responses, self.tokenizer, policy.device)

    def synchronize(self, policy) -> None:
        self.take_over(policy)
        self.compare(policy)

    def compare(self, policy) -> None:
        """Raise StaleWeights unless the engine's weights are the policy's, bit by bit."""
        differences = differing(fingerprint(weights(policy)), self.fingerprint())
        if differences:
            raise StaleWeights(f"the engine's weights are not the policy's: {', '.join(differences)}")

    def wake(self) -> None:
        """Before sampling: put weights and cache where they are needed."""

    def rest(self) -> None:
        """After sampling: weights and cache may go."""

    @abstractmethod
    def take_over(self, policy) -> None:
        """Copy the policy's weights."""

    @abstractmethod
    def fingerprint(self) -> dict[str, int]:
        """The fingerprint of the engine's weights."""

    @abstractmethod
    def forget(self) -> None:
        """Drop all keys and values: earlier weights made wrong ones, and kept ones would change the rounding."""

    @abstractmethod
    def generate(self, prompts: list[list[int]], requests: list[dict]) -> list[list[tuple[list[int], list[float]]]]:
        """Groups of (token ids, log-probabilities), in the order of the prompts."""


@torch.no_grad()
def weights(policy) -> list[tuple[str, torch.Tensor]]:
    """The weights that the policy computes with, by name; adapters are merged, a shared weight comes once."""
    return [(name, tensor.detach()) for name, tensor in merged(policy, dict(policy.named_parameters())).items()]


def request(ends: list[int], sampling: Sampling, seed: int) -> dict:
    """vLLM's SamplingParams for one prompt. End-of-sequence is a stop token like any other: vLLM then returns it."""
    return {
        "n": sampling.group_size,
        "temperature": sampling.temperature,
        "max_tokens": sampling.max_response_tokens,
        "seed": seed,
        "logprobs": 0,  # of the sampled token alone
        "detokenize": False,
        "ignore_eos": True,
        "stop_token_ids": ends,
    }


def as_rollouts(
    prompts: list[list[int]],
    sampling: Sampling,
    responses: list[tuple[list[int], list[float]]],
    tokenizer,
    device: torch.device,
) -> Rollouts:
    """B responses (token ids, log-probabilities) as Rollouts. Raises RuntimeError if one is missing or malformed."""
    if len(responses) != len(prompts) * sampling.group_size or any(
        not ids or len(ids) != len(logprobs) for ids, logprobs in responses
    ):
        raise RuntimeError("vLLM returned too few responses, or one without a log-probability for each token")
    lengths = torch.tensor([len(ids) for ids, _ in responses])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    ids = torch.full(mask.shape, tokenizer.pad_token_id)
    logprobs = torch.zeros(mask.shape)
    ids[mask] = torch.tensor([token for row, _ in responses for token in row])
    if sampling.temperature > 0:
        logprobs[mask] = torch.tensor([logprob for _, row in responses for logprob in row])
    truncated = torch.tensor([row[-1] not in end_ids(tokenizer) for row, _ in responses])
    return Rollouts(prompts, sampling.group_size, *(x.to(device) for x in (ids, mask, logprobs, truncated)))
