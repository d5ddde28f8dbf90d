"""Model + Batch -> log-probabilities of the sampled tokens, entropies, values.

Sequences are [prompt | response | padding] without a gap, so under causal attention a real token never sees padding:
no attention mask and no position ids are needed. The logits at position n predict token n + 1; response token t
stands at prompt_length + t, hence is predicted, and its state valued, at prompt_length - 1 + t.
Old, new and reference log-probabilities all come from here, in float32 and at the sampling temperature, so that
the ratio is 1 on the first optimiser step of every rollout batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from algos.kl import kl_full
from algos.training.types import Batch


def hidden_states(backbone, batch: Batch) -> Tensor:
    """The states that predict each response token, (B, T, H); what stands on padding is meaningless."""
    states = backbone(input_ids=batch.sequence_ids, use_cache=False).last_hidden_state  # (B, L, H)
    steps = torch.arange(batch.response_mask.shape[1], device=states.device)
    positions = (batch.prompt_lengths[:, None] - 1 + steps).clamp(max=states.shape[1] - 1)  # (B, T)
    return states.gather(1, positions[..., None].expand(-1, -1, states.shape[-1]))


def token_logits(policy, batch: Batch) -> Tensor:
    """Logits (B, T, V) that predict each response token, in float32 or float64; meaningless on padding."""
    logits = policy.get_output_embeddings()(hidden_states(policy.base_model, batch))
    return logits if logits.dtype == torch.float64 else logits.float()


@dataclass(frozen=True)
class Outputs:
    """What one forward pass of the policy gives for the response tokens. Gradients flow unless it ran without."""

    logprobs: Tensor  # (B, T) of the sampled tokens, in nats; 0 on padding
    entropies: Tensor | None  # (B, T) over the vocabulary, in nats; 0 on padding
    full_kl: Tensor | None  # (B, T) exact KL between policy and reference, in nats; 0 on padding
    states: Tensor  # (B, T, H) for a value head on the same backbone


def policy_outputs(
    policy, batch: Batch, temperature: float, entropy: bool = False, reference=None, direction: str = "reverse"
) -> Outputs:
    """One forward pass; with a reference its own too (without gradient), for the KL over the whole vocabulary."""
    states = hidden_states(policy.base_model, batch)
    logits = policy.get_output_embeddings()(states)
    logits = (logits if logits.dtype == torch.float64 else logits.float()) / temperature  # (B, T, V)
    normaliser = logits.logsumexp(dim=-1)
    zeros = torch.zeros_like(normaliser)
    logprobs = logits.gather(-1, batch.response_ids[..., None]).squeeze(-1) - normaliser
    logprobs = torch.where(batch.response_mask, logprobs, zeros)
    entropies = full_kl = None
    if entropy or reference is not None:
        all_logprobs = logits - normaliser[..., None]
    if entropy:
        entropies = torch.where(batch.response_mask, -(all_logprobs.exp() * all_logprobs).sum(dim=-1), zeros)
    if reference is not None:
        with torch.no_grad():
            ref_all = torch.log_softmax(token_logits(reference, batch).to(logits.dtype) / temperature, dim=-1)
        full_kl = torch.where(batch.response_mask, kl_full(all_logprobs, ref_all, direction), zeros)
    return Outputs(logprobs, entropies, full_kl, states)


def token_logprobs(policy, batch: Batch, temperature: float, entropy: bool = False) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities (B, T) of the response tokens, in nats; with entropy=True the full-vocabulary entropies too."""
    outputs = policy_outputs(policy, batch, temperature, entropy)
    return outputs.logprobs, outputs.entropies


def head_values(head, states: Tensor, batch: Batch) -> Tensor:
    """Values (B, T) of the states before each response token, in reward units; 0 on padding."""
    values = head(states).squeeze(-1).float()
    return torch.where(batch.response_mask, values, torch.zeros_like(values))


def token_values(critic, batch: Batch) -> Tensor:
    """head_values of a model with a backbone and a head of its own."""
    return head_values(critic.score, hidden_states(critic.backbone, batch), batch)


def micro_batches(batch: Batch, size: int):
    """Row indices of micro-batches of `size` responses of similar length: little padding, the same gradient."""
    return batch.lengths.argsort(stable=True).split(size)


@torch.no_grad()
def in_micro_batches(function, batch: Batch, size: int) -> Tensor:
    """function(micro-batch) -> (b, t, ...) over the whole batch, without gradient: (B, T, ...), 0 where cut off."""
    result = None
    for rows in micro_batches(batch, size):
        part = function(batch.select(rows))
        if result is None:
            result = part.new_zeros((len(batch), batch.response_mask.shape[1], *part.shape[2:]))
        result[rows, : part.shape[1]] = part
    return result
