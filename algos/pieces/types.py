"""The tensors that flow through a training step: the shape, dtype and unit of each, defined once.

P prompts, G responses per prompt (a group), B = P * G responses, T response tokens (right-padded),
L tokens of prompt and response together (right-padded), V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

Shares = dict[str, Tensor]  # name of a metric -> a tensor whose mean is logged, such as "this token is clipped"
# How an algorithm joins importance ratio and advantage: (log_ratio, logprobs, advantages, mask, hparams) -> the value
# to maximize, (B, T) or (B, 1), and shares of the same shape. If the algorithm selects tokens of the whole optimizer
# step, a sixth argument, selected (B, T) bool, says which.
Objective = Callable[..., tuple[Tensor, Shares]]


@dataclass(frozen=True)
class Rollouts:
    """Responses as the sampler returned them; rows of one prompt are adjacent."""

    prompts: list[list[int]]  # (P) token ids of each prompt
    group_size: int  # G
    response_ids: Tensor  # (B, T) int64, padding under the mask's False
    response_mask: Tensor  # (B, T) bool, True up to and including the first end-of-sequence token
    sampler_logprobs: Tensor  # (B, T) float32, nats, of the distribution sampled from; 0 on padding
    truncated: Tensor  # (B,) bool, True where the length limit came before end-of-sequence
    entropies: Tensor | None = None  # (B, T) float32, nats, of the distributions sampled from; None: unknown
    ref_logprobs: Tensor | None = None  # (B, T) float32, nats; known only if scoring ran the reference

    @property
    def response_tokens(self) -> int:
        return int(self.response_mask.sum())

    def select_groups(self, groups: list[int]) -> "Rollouts":
        """The given groups, in the given order."""
        rows = torch.tensor([g * self.group_size + i for g in groups for i in range(self.group_size)], dtype=torch.long)
        rows = rows.to(self.response_ids.device)
        return Rollouts(
            [self.prompts[g] for g in groups],
            self.group_size,
            self.response_ids[rows],
            self.response_mask[rows],
            self.sampler_logprobs[rows],
            self.truncated[rows],
            None if self.entropies is None else self.entropies[rows],
            None if self.ref_logprobs is None else self.ref_logprobs[rows],
        )

    @staticmethod
    def join(parts: list["Rollouts"], pad_id: int) -> "Rollouts":
        """Several rollouts of one group size as one, padded to the longest response."""
        if len(parts) == 1:
            return parts[0]
        width = max(part.response_ids.shape[1] for part in parts)

        def joined(tensors: list[Tensor], fill: float) -> Tensor:
            pad = torch.nn.functional.pad
            return torch.cat([pad(x, (0, width - x.shape[1]), value=fill) for x in tensors])

        def joined_if_known(tensors: list[Tensor | None]) -> Tensor | None:
            known = [x for x in tensors if x is not None]
            return joined(known, 0.0) if len(known) == len(tensors) else None

        return Rollouts(
            [prompt for part in parts for prompt in part.prompts],
            parts[0].group_size,
            joined([part.response_ids for part in parts], pad_id),
            joined([part.response_mask for part in parts], False),
            joined([part.sampler_logprobs for part in parts], 0.0),
            torch.cat([part.truncated for part in parts]),
            joined_if_known([part.entropies for part in parts]),
            joined_if_known([part.ref_logprobs for part in parts]),
        )


@dataclass(frozen=True)
class Segments:
    """The structure of a row of L tokens, for attention: n prompts of up to P tokens, B responses of up to T."""

    prompts: Tensor  # (n, P) int64: the places in the row of each prompt's tokens, 0 behind its end
    prompt_mask: Tensor  # (1, 1, P, P) bool: causal; places behind a prompt's end come after all its tokens
    responses: Tensor  # (B, T) int64: the places of each response's tokens, 0 behind its end
    keys: Tensor  # (B, P + T) int64: for each response the places of its prompt's tokens and of its own tokens
    mask: Tensor  # (B, 1, T, P + T) bool: the keys that a token sees
    place: Tensor  # (L,) int64: where a token stands in [prompts | responses], laid end to end


@dataclass(frozen=True)
class Packed:
    """A micro-batch as a model's forward pass takes it: R rows of L tokens; see packing.py."""

    input_ids: Tensor  # (R, L) int64
    position_ids: Tensor | None  # (R, L) int64; None: 0, 1, 2, ...
    segments: Segments | None  # set if one row holds all sequences; None: each sequence has a row of its own
    source: Tensor  # (N,) int64: the state, among R x L, that predicts each response token, in response_mask's order
    last: Tensor  # (B,) int64: the state, among R x L, on the last token of each sequence


@dataclass(frozen=True)
class Batch:
    """Rollouts as the trainer sees them. No tensor here carries gradient."""

    sequence_ids: Tensor  # (B, L) int64, [prompt | response | padding] without a gap
    prompt_lengths: Tensor  # (B,) int64
    response_ids: Tensor  # (B, T) int64
    response_mask: Tensor  # (B, T) bool
    sampler_logprobs: Tensor  # (B, T) float32, nats
    rewards: Tensor  # (B,) float32, one per response, its components already added up
    group_size: int
    old_logprobs: Tensor | None = None  # (B, T) float32, nats: policy at the start of the update, by the trainer
    ref_logprobs: Tensor | None = None  # (B, T) float32, nats: of the frozen reference; None without a KL term
    values: Tensor | None = None  # (B, T) float32, reward units: critic at rollout time; None without a critic
    returns: Tensor | None = None  # (B, T) float32, reward units: the critic's targets
    advantages: Tensor | None = None  # (B, 1) or (B, T) float32
    full_kl: Tensor | None = None  # (B, T) float32, nats: KL(policy || reference) over the vocabulary, at rollout time
    greedy_rewards: Tensor | None = None  # (P,) float32: reward of each prompt's greedy response (ReMax)
    keep: Tensor | None = None  # (B,) bool: the responses that count in the loss; None: all
    logprobs: Tensor | None = None  # (B, T) float32, nats: policy before an optimizer step; for a selection alone
    entropies: Tensor | None = None  # (B, T) float32, nats: of the distributions behind logprobs
    selected: Tensor | None = None  # (B, T) bool: the tokens that the algorithm selects in an optimizer step
    groups: Tensor | None = None  # (B,) int64: responses with the same number have the same prompt; None: unknown
    packed: Packed | None = None  # of a micro-batch: its layout for a forward pass; None: one sequence per row

    def __len__(self) -> int:
        return len(self.sequence_ids)

    @property
    def lengths(self) -> Tensor:
        """(B,) tokens of prompt and response."""
        return self.prompt_lengths + self.response_mask.sum(dim=1)

    @property
    def loss_mask(self) -> Tensor:
        """(B, T) bool: the tokens that count in the losses."""
        return self.response_mask if self.keep is None else self.response_mask & self.keep[:, None]

    def select(self, rows: Tensor) -> "Batch":
        """The given rows, without the columns that are padding in all these rows. Groups need not stay whole."""
        chosen: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        chosen["greedy_rewards"] = None  # one per prompt; only advantages need it, and they exist already
        chosen["packed"] = None
        chosen = {name: value[rows] if isinstance(value, Tensor) else value for name, value in chosen.items()}
        batch = replace(self, **chosen)
        width, total = int(batch.response_mask.sum(dim=1).max()), int(batch.lengths.max())
        cut: dict[str, Any] = {
            name: value[:, :width]
            for name, value in chosen.items()
            if isinstance(value, Tensor)
            and value.dim() == 2
            and value.shape[1] == self.response_mask.shape[1]
            and name != "sequence_ids"
        }
        return replace(batch, sequence_ids=batch.sequence_ids[:, :total], **cut)


@dataclass(frozen=True)
class Totals:
    """Counts over a whole optimizer step, by which the sums of a micro-batch are divided."""

    responses: int
    response_tokens: int

    @classmethod
    def of(cls, response_mask: Tensor) -> "Totals":
        """Empty responses count as no response; at least 1 each, so that nothing divides by 0."""
        return cls(max(int(response_mask.any(dim=1).sum()), 1), max(int(response_mask.sum()), 1))


def make_batch(rollouts: Rollouts, rewards: Tensor, pad_id: int) -> Batch:
    """Rollouts and their rewards (B,) as one right-padded batch."""
    device = rollouts.response_ids.device
    prompts = [prompt for prompt in rollouts.prompts for _ in range(rollouts.group_size)]
    prompt_lengths = torch.tensor([len(prompt) for prompt in prompts])
    response_lengths = rollouts.response_mask.sum(dim=1).cpu()
    responses = rollouts.response_ids.cpu()
    sequences = torch.full((len(prompts), int((prompt_lengths + response_lengths).max())), pad_id)
    for row, prompt in enumerate(prompts):
        end = len(prompt) + int(response_lengths[row])
        sequences[row, : len(prompt)] = torch.tensor(prompt)
        sequences[row, len(prompt) : end] = responses[row, : int(response_lengths[row])]
    return Batch(
        sequences.to(device),
        prompt_lengths.to(device),
        rollouts.response_ids,
        rollouts.response_mask,
        rollouts.sampler_logprobs,
        rewards.to(device),
        rollouts.group_size,
        groups=torch.arange(len(rollouts.prompts), device=device).repeat_interleave(rollouts.group_size),
        ref_logprobs=rollouts.ref_logprobs,
    )
