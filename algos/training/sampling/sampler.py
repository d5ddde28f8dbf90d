"""Prompts -> rollouts, sampled with transformers and a key-value cache.

The prompt of a group is computed once and its keys and values shared out to the group's responses. Finished rows leave
the batch, and sampling stops when none is left. The log-probability of each sampled token is kept, of the very
distribution that it was drawn from, and that distribution's entropy.

Every response token has a random number of its own, drawn before sampling begins: which rows share a forward pass,
and which have left it, has no effect on what is drawn.
"""

import inspect
from contextlib import nullcontext

import torch
from torch import Tensor

from algos.pieces.types import Rollouts
from algos.training.models.kv_cache import SharedOut, compacted
from algos.training.models.packing import ATTENTION
from algos.training.models.tokens import end_ids
from algos.training.sampling.routing import Routing

CHECK_EVERY = 8  # tokens between looks at which rows are done, on a GPU: each look waits for it


@torch.no_grad()
def sample(
    policy,
    tokenizer,
    prompts: list[list[int]],
    group_size: int,
    max_response_tokens: int,
    temperature: float,
    generator: torch.Generator,
    rows_at_once: int = 512,
    routing: Routing | None = None,
) -> Rollouts:
    """group_size responses to each prompt. temperature 0 is greedy.

    generator lives on the policy's device; the same generator state gives the same responses. rows_at_once bounds
    memory: prompts are taken in chunks of at most that many responses. routing is told of each pass of the first chunk.
    """
    if not prompts or any(not prompt for prompt in prompts):
        raise ValueError("sampling needs at least one prompt, and no prompt may be empty")
    uniforms = None
    if temperature > 0:
        shape = (len(prompts) * group_size, max_response_tokens)
        uniforms = torch.rand(shape, generator=generator, device=policy.device, dtype=torch.float64)
    per_chunk = max(rows_at_once // group_size, 1)
    parts = []
    for i in range(0, len(prompts), per_chunk):
        chunk = prompts[i : i + per_chunk]
        rows = slice(i * group_size, (i + len(chunk)) * group_size)
        chunk_uniforms = uniforms[rows] if uniforms is not None else None
        told = routing if i == 0 else None
        with nullcontext() if told is None else told.listening():
            arguments = (tokenizer, chunk, group_size, max_response_tokens, temperature, chunk_uniforms, told)
            parts.append(_sample_chunk(policy, *arguments))
    ids, logprobs, entropies, lengths = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
    width = int(lengths.max())
    mask = torch.arange(width, device=ids.device) < lengths[:, None]
    ids = torch.where(mask, ids[:, :width], tokenizer.pad_token_id)
    truncated = ~(torch.isin(ids, torch.tensor(end_ids(tokenizer), device=ids.device)) & mask).any(dim=1)
    logprobs, entropies = logprobs[:, :width] * mask, entropies[:, :width] * mask
    rollouts = Rollouts(prompts, group_size, ids, mask, logprobs, truncated, entropies)
    if routing is not None:
        routing.rollouts = rollouts
    return rollouts


def _sample_chunk(
    policy, tokenizer, prompts, group_size, max_response_tokens, temperature, uniforms, routing
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Response ids, their log-probabilities and the entropies (b, T), and lengths (b,)."""
    device = policy.device
    width = max(len(prompt) for prompt in prompts)
    input_ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device).bool()
    padded = any(len(prompt) < width for prompt in prompts)
    output = policy(
        input_ids=input_ids,
        attention_mask=mask if padded else None,
        **_positions(policy, (mask.cumsum(dim=1) - 1).clamp(min=0)),
        use_cache=True,
        logits_to_keep=1,
    )
    if routing is not None:
        routing.after_prompts()
    cache = SharedOut(output.past_key_values, group_size, max_response_tokens)
    logits = output.logits[:, -1].float().repeat_interleave(group_size, dim=0)
    position = mask.sum(dim=1, keepdim=True).repeat_interleave(group_size, dim=0)  # (b, 1): of the token to come
    mask = mask.repeat_interleave(group_size, dim=0)
    mask = torch.cat([mask, mask.new_ones(len(mask), max_response_tokens)], dim=1)  # (b, width + T)

    total = len(logits)
    ids = torch.full((total, max_response_tokens), tokenizer.pad_token_id, device=device)
    logprobs = torch.zeros((total, max_response_tokens), device=device)
    entropies = torch.zeros_like(logprobs)
    lengths = torch.full((total,), max_response_tokens, device=device)
    rows = torch.arange(total, device=device)  # which response each row of the shrinking batch belongs to
    done = torch.zeros(total, dtype=torch.bool, device=device)  # over the rows still in the batch
    ends = torch.tensor(end_ids(tokenizer), device=device)
    # a boolean mask of four dimensions is taken as it is by sdpa; eager attention would add it to the scores
    ready_made = cache.preallocated and policy.config._attn_implementation in ("sdpa", ATTENTION)
    ready_made = ready_made and not getattr(policy.config, "alibi", False)  # Falcon counts its places from the mask
    for t in range(max_response_tokens):
        tokens, logprobs[rows, t], entropies[rows, t] = _draw(
            logits, temperature, uniforms[rows, t] if uniforms is not None else None
        )
        ids[rows, t] = tokens
        ended = torch.isin(tokens, ends)
        lengths[rows] = torch.where(ended & ~done, t + 1, lengths[rows])
        done = done | ended
        if t + 1 == max_response_tokens:
            break
        if device.type == "cpu" or t % CHECK_EVERY == CHECK_EVERY - 1:
            index, gaps = compacted(~done)
            if len(index) == 0:
                break
            if len(index) < len(done):
                cache.select(index, gaps)
                rows, tokens, position, mask, done = (x[index] for x in (rows, tokens, position, mask, done))
        seen = mask[:, : width + t + 1]
        output = policy(
            input_ids=tokens[:, None],
            attention_mask=(seen[:, None, None] if ready_made else seen) if padded else None,
            **_positions(policy, position),
            past_key_values=cache.past,
            use_cache=True,
        )
        if routing is not None:
            routing.after_token(rows)
        logits, position = output.logits[:, -1].float(), position + 1
    return ids, logprobs, entropies, lengths


def _positions(policy, positions: Tensor) -> dict[str, Tensor]:
    """The positions (b, L) for a model that takes any; one with ALiBi or a recurrent state counts by the mask."""
    parameters = inspect.signature(policy.forward).parameters
    return {"position_ids": positions} if "position_ids" in parameters or "input_ids" not in parameters else {}


def _draw(logits: Tensor, temperature: float, uniforms: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """One token per row of logits (b, V), its log-probability and the entropy of the distribution drawn from.

    The token is where the cumulative distribution passes the row's uniform number (b,) in float64.
    """
    if temperature == 0:
        zeros = torch.zeros_like(logits[:, 0])
        return logits.argmax(dim=-1), zeros, zeros
    assert uniforms is not None  # only greedy sampling does without
    all_logprobs = torch.log_softmax(logits / temperature, dim=-1)
    probabilities = all_logprobs.exp()
    cumulative = probabilities.cumsum(dim=-1, dtype=torch.float64)
    tokens = torch.searchsorted(cumulative, (uniforms * cumulative[:, -1])[:, None], right=True)
    tokens = tokens.clamp(max=logits.shape[-1] - 1)
    entropies = -(probabilities * all_logprobs).nan_to_num().sum(dim=-1)
    return tokens.squeeze(1), all_logprobs.gather(1, tokens).squeeze(1), entropies


def decode(tokenizer, rollouts: Rollouts) -> list[str]:
    """The responses as text, without padding and the end-of-sequence token."""
    rows = zip(rollouts.response_ids.tolist(), rollouts.response_mask.sum(dim=1).tolist(), strict=True)
    return decode_ids(tokenizer, [ids[:length] for ids, length in rows])


def decode_ids(tokenizer, responses: list[list[int]]) -> list[str]:
    """Token ids as text. Only a final end-of-sequence is dropped: other special tokens were said, and are graded."""
    ends = end_ids(tokenizer)
    return tokenizer.batch_decode([ids[:-1] if ids and ids[-1] in ends else ids for ids in responses])
