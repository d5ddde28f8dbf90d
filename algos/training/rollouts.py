"""Prompts -> rollouts, sampled with transformers and a key-value cache.

The prompt of a group is computed once and its cache shared out to the group's responses. Finished rows leave the batch,
and sampling stops when none is left. The log-probability of each sampled token is kept, of the very
distribution that it was drawn from.
"""

import torch
from torch import Tensor

from algos.training.types import Rollouts

DROP_SHARE = 8  # finished rows leave once they are 1 / DROP_SHARE of the batch: copying the cache costs too


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
) -> Rollouts:
    """group_size responses to each prompt. temperature 0 is greedy.

    generator lives on the policy's device; the same generator state gives the same responses. rows_at_once bounds
    memory: prompts are taken in chunks of at most that many responses.
    """
    if not prompts or any(not prompt for prompt in prompts):
        raise ValueError("sampling needs at least one prompt, and no prompt may be empty")
    per_chunk = max(rows_at_once // group_size, 1)
    parts = [
        _sample_chunk(
            policy, tokenizer, prompts[i : i + per_chunk], group_size, max_response_tokens, temperature, generator
        )
        for i in range(0, len(prompts), per_chunk)
    ]
    ids, logprobs, lengths = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
    width = int(lengths.max())
    mask = torch.arange(width, device=ids.device) < lengths[:, None]
    ids = torch.where(mask, ids[:, :width], tokenizer.pad_token_id)
    truncated = ~((ids == tokenizer.eos_token_id) & mask).any(dim=1)
    return Rollouts(prompts, group_size, ids, mask, logprobs[:, :width] * mask, truncated)


def _sample_chunk(
    policy, tokenizer, prompts, group_size, max_response_tokens, temperature, generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Response ids (b, T), their log-probabilities (b, T) and lengths (b,)."""
    device = policy.device
    width = max(len(prompt) for prompt in prompts)
    input_ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(p)) + p for p in prompts], device=device)
    attention_mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    positions = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
    output = policy(
        input_ids=input_ids, attention_mask=attention_mask, position_ids=positions, use_cache=True, logits_to_keep=1
    )
    cache, logits = output.past_key_values, output.logits[:, -1].float()
    if group_size > 1:
        cache.batch_repeat_interleave(group_size)
        logits = logits.repeat_interleave(group_size, dim=0)
        attention_mask = attention_mask.repeat_interleave(group_size, dim=0)
    position = attention_mask.sum(dim=1, keepdim=True)  # (b, 1): of the token to come

    total = len(logits)
    ids = torch.full((total, max_response_tokens), tokenizer.pad_token_id, device=device)
    logprobs = torch.zeros((total, max_response_tokens), device=device)
    lengths = torch.full((total,), max_response_tokens, device=device)
    rows = torch.arange(total, device=device)  # which response each row of the shrinking batch belongs to
    done = torch.zeros(total, dtype=torch.bool, device=device)  # over the rows still in the batch
    for t in range(max_response_tokens):
        tokens, token_logprobs = _draw(logits, temperature, generator)
        live = ~done
        ids[rows[live], t] = tokens[live]
        logprobs[rows[live], t] = token_logprobs[live]
        ended = live & (tokens == tokenizer.eos_token_id)
        lengths[rows[ended]] = t + 1
        done = done | ended
        finished = int(done.sum())
        if finished == len(done) or t + 1 == max_response_tokens:
            break
        attention_mask = torch.cat([attention_mask, torch.ones_like(position)], dim=1)
        if finished * DROP_SHARE >= len(done):
            keep = (~done).nonzero().squeeze(1)
            cache.batch_select_indices(keep)
            rows, tokens, position, attention_mask = rows[keep], tokens[keep], position[keep], attention_mask[keep]
            done = done[keep]
        output = policy(
            input_ids=tokens[:, None],
            attention_mask=attention_mask,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
        )
        logits, position = output.logits[:, -1].float(), position + 1
    return ids, logprobs, lengths


def _draw(logits: Tensor, temperature: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One token per row of logits (b, V), and its log-probability under the distribution drawn from."""
    if temperature == 0:
        tokens = logits.argmax(dim=-1)
        return tokens, torch.zeros_like(logits[:, 0])
    all_logprobs = torch.log_softmax(logits / temperature, dim=-1)
    tokens = torch.multinomial(all_logprobs.exp(), 1, generator=generator)
    return tokens.squeeze(1), all_logprobs.gather(1, tokens).squeeze(1)


def decode(tokenizer, rollouts: Rollouts) -> list[str]:
    """The responses as text, without padding and the end-of-sequence token."""
    rows = zip(rollouts.response_ids.tolist(), rollouts.response_mask.sum(dim=1).tolist(), strict=True)
    return decode_ids(tokenizer, [ids[:length] for ids, length in rows])


def decode_ids(tokenizer, responses: list[list[int]]) -> list[str]:
    """Token ids as text. Only a final end-of-sequence is dropped: other special tokens were said, and are graded."""
    end = tokenizer.eos_token_id
    return tokenizer.batch_decode([ids[:-1] if ids and ids[-1] == end else ids for ids in responses])
