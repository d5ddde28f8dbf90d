"""Model + Batch -> log-probabilities of the sampled tokens, entropies, values.

Sequences are laid out as packing.py says. The logits at position n predict token n + 1; response token t stands at
prompt_length + t, hence is predicted, and its state valued, at prompt_length - 1 + t. Only these N states of real
response tokens meet the output head, and only so many at once as logits fit into LOGITS_AT_ONCE.
Old, new and reference log-probabilities all come from here, in float32 and at the sampling temperature, so that
the ratio is 1 on the first optimizer step of every rollout batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from algos.pieces.types import Batch
from algos.training.config import LOGITS_AT_ONCE
from algos.training.models.head import full_kl, token_statistics
from algos.training.models.packing import Layout, forward, plain, rows_of


def hidden_states(backbone, batch: Batch) -> Tensor:
    """The states that predict the N response tokens, (N, H), in the order of response_mask."""
    packed = batch.packed or plain(batch)
    return rows_of(forward(backbone, packed).flatten(0, 1), packed.source)


def token_logits(policy, batch: Batch) -> Tensor:
    """Logits (B, T, V) that predict each response token, in float32 or float64; 0 on padding."""
    logits = policy.get_output_embeddings()(hidden_states(policy.base_model, batch))
    return scatter(logits if logits.dtype == torch.float64 else logits.float(), batch.response_mask)


def scatter(values: Tensor, mask: Tensor) -> Tensor:
    """Values (N, ...) of the places where the mask (B, T) is True, in their places: (B, T, ...), 0 elsewhere."""
    return values.new_zeros(*mask.shape, *values.shape[1:]).index_put(mask.nonzero(as_tuple=True), values)


@dataclass(frozen=True)
class Outputs:
    """What one forward pass of the policy gives for the response tokens. Gradients flow unless it ran without."""

    logprobs: Tensor  # (B, T) of the sampled tokens, in nats; 0 on padding
    entropies: Tensor | None  # (B, T) over the vocabulary, in nats; 0 on padding
    full_kl: Tensor | None  # (B, T) exact KL between policy and reference, in nats; 0 on padding
    states: Tensor  # (N, H) of the N response tokens, for a value head on the same backbone


def policy_outputs(
    policy,
    batch: Batch,
    temperature: float,
    entropy: bool = False,
    reference=None,
    direction: str = "reverse",
    logits_at_once: int | None = LOGITS_AT_ONCE,
) -> Outputs:
    """One forward pass; with a reference its own too (without gradient), for the KL over the whole vocabulary."""
    mask, head = batch.response_mask, policy.get_output_embeddings()
    states = hidden_states(policy.base_model, batch)
    logprobs, entropies = token_statistics(head, states, batch.response_ids[mask], temperature, entropy, logits_at_once)
    kl = None
    if reference is not None:
        with torch.no_grad():
            ref_states = hidden_states(reference.base_model, batch)
        ref_head = reference.get_output_embeddings()
        kl = full_kl(head, states, ref_head, ref_states, temperature, direction, logits_at_once)
    return Outputs(
        scatter(logprobs, mask),
        None if entropies is None else scatter(entropies, mask),
        None if kl is None else scatter(kl, mask),
        states,
    )


def token_logprobs(
    policy, batch: Batch, temperature: float, entropy: bool = False, logits_at_once: int | None = LOGITS_AT_ONCE
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities (B, T) of the response tokens, in nats; with entropy=True the full-vocabulary entropies too."""
    outputs = policy_outputs(policy, batch, temperature, entropy, logits_at_once=logits_at_once)
    return outputs.logprobs, outputs.entropies


def head_values(head, states: Tensor, batch: Batch) -> Tensor:
    """Values (B, T) of the states (N, H) before each response token, in reward units; 0 on padding."""
    return scatter(head(states).squeeze(-1).float(), batch.response_mask)


def token_values(critic, batch: Batch) -> Tensor:
    """head_values of a model with a backbone and a head of its own."""
    return head_values(critic.score, hidden_states(critic.backbone, batch), batch)


@torch.no_grad()
def in_micro_batches(function, batch: Batch, layout: Layout) -> Tensor:
    """function(micro-batch) -> (b, t, ...) over the whole batch, without gradient: (B, T, ...), 0 where cut off."""
    result: Tensor | None = None
    for rows, micro_batch in layout.micro_batches(batch):
        part = function(micro_batch)
        if result is None:
            result = part.new_zeros((len(batch), batch.response_mask.shape[1], *part.shape[2:]))
        result[rows, : part.shape[1]] = part
    assert result is not None  # a batch has at least one micro-batch
    return result
