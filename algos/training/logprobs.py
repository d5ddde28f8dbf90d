"""Model + Batch -> log-probabilities of the sampled tokens, entropies, values.

Sequences are [prompt | response | padding] without a gap, so under causal attention a real token never sees padding:
no attention mask and no position ids are needed. The logits at position n predict token n + 1; response token t
stands at prompt_length + t, hence is predicted, and its state valued, at prompt_length - 1 + t.
Old, new and reference log-probabilities all come from here, in float32 and at the sampling temperature, so that
the ratio is 1 on the first optimiser step of every rollout batch.
"""

import torch
from torch import Tensor

from algos.training.types import Batch


def hidden_states(backbone, batch: Batch) -> Tensor:
    """The states that predict each response token, (B, T, H); what stands on padding is meaningless."""
    states = backbone(input_ids=batch.sequence_ids, use_cache=False).last_hidden_state  # (B, L, H)
    steps = torch.arange(batch.response_mask.shape[1], device=states.device)
    positions = (batch.prompt_lengths[:, None] - 1 + steps).clamp(max=states.shape[1] - 1)  # (B, T)
    return states.gather(1, positions[..., None].expand(-1, -1, states.shape[-1]))


def token_logprobs(policy, batch: Batch, temperature: float, entropy: bool = False) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities (B, T) of the response tokens, in nats; with entropy=True the full-vocabulary entropies too.

    0 on padding. The log-probabilities carry gradient if the policy's parameters do, the entropies never.
    """
    logits = policy.get_output_embeddings()(hidden_states(policy.base_model, batch)).float() / temperature  # (B, T, V)
    normaliser = logits.logsumexp(dim=-1)
    logprobs = logits.gather(-1, batch.response_ids[..., None]).squeeze(-1) - normaliser
    zeros = torch.zeros_like(logprobs)
    logprobs = torch.where(batch.response_mask, logprobs, zeros)
    if not entropy:
        return logprobs, None
    with torch.no_grad():
        all_logprobs = logits - normaliser[..., None]
        entropies = -(all_logprobs.exp() * all_logprobs).sum(dim=-1)
    return logprobs, torch.where(batch.response_mask, entropies, zeros)


def token_values(critic, batch: Batch) -> Tensor:
    """Values (B, T) of the states before each response token, in reward units; 0 on padding."""
    values = critic.score(hidden_states(critic.backbone, batch)).squeeze(-1).float()
    return torch.where(batch.response_mask, values, torch.zeros_like(values))


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
