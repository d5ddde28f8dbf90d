"""How a batch is cut and laid out for forward passes. This changes memory and time, and no result.

A micro-batch goes through a model as one row without padding, [prompt | response | response | ... | prompt | ...]: each
prompt once, before the responses that share it, and each response at the positions after its prompt. Everything but
attention works token by token, so that the layout has no effect on it. Attention is computed prompt by prompt and
response by response, with keys and values looked up in the row; a response sees its prompt and itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from algos.pieces.types import Batch, Packed, Segments

ATTENTION = "sdpa_of_segments"  # the name under which transformers finds it
PROBE_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}  # of states, in units of the largest; else 3e-2


@dataclass(frozen=True)
class Layout:
    """How a batch is cut into forward passes. Both limits hold; None: no limit."""

    responses: int | None = None  # of one micro-batch
    tokens: int | None = None  # of one micro-batch, padding included
    share_prompts: bool = False  # lay micro-batches out as one row, its prompts shared; the model must have learned to

    def micro_batches(self, batch: Batch) -> Iterator[tuple[Tensor, Batch]]:
        """Row indices and the laid-out micro-batch of each; every response once. A response is never cut."""
        for indices, _ in self.pieces(*sizes(batch)):
            rows = torch.from_numpy(indices).to(batch.sequence_ids.device)
            part = batch.select(rows)
            yield rows, replace(part, packed=self.pack(part))

    def pieces(self, lengths: np.ndarray, prompts: np.ndarray, owners: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
        """Row indices of each micro-batch, and its tokens, padding included, for sequences of these sizes()."""
        order = np.argsort(lengths, kind="stable")
        if self.share_prompts:  # responses of one prompt side by side
            order = order[np.argsort(owners[order], kind="stable")]
        piece: list[int] = []
        cells, owner = 0, None
        for row in order.tolist():
            if self.share_prompts:
                wider = cells + int(lengths[row]) - (int(prompts[row]) if owners[row] == owner else 0)
            else:
                wider = (len(piece) + 1) * int(lengths[row])  # the longest so far: the order is by length
            if piece and (
                (self.responses is not None and len(piece) == self.responses)
                or (self.tokens is not None and wider > self.tokens)
            ):
                yield np.array(piece), cells
                piece, wider = [], int(lengths[row])
            piece.append(row)
            cells, owner = wider, owners[row]
        yield np.array(piece), cells

    def pack(self, batch: Batch) -> Packed:
        """One micro-batch as a model takes it."""
        return shared_row(batch) if self.share_prompts else plain(batch)


def sizes(batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(B,) tokens of each sequence, tokens of its prompt, and the number of its prompt among the batch's."""
    prompts = batch.prompt_lengths.cpu().numpy()
    owners = np.arange(len(prompts)) if batch.groups is None else batch.groups.cpu().numpy()
    return batch.lengths.cpu().numpy(), prompts, np.unique(owners, return_inverse=True)[1]


def plain(batch: Batch) -> Packed:
    """Every sequence its own row. A real token never sees the padding behind it: no mask, no positions are needed."""
    response, step = batch.response_mask.nonzero(as_tuple=True)
    width = batch.sequence_ids.shape[1]
    source = response * width + batch.prompt_lengths[response] - 1 + step
    last = torch.arange(len(batch), device=source.device) * width + batch.lengths - 1
    return Packed(batch.sequence_ids, None, None, source, last)


def shared_row(batch: Batch) -> Packed:
    """One row for all sequences, each prompt once."""
    lengths, prompts, owners = sizes(batch)
    width, responses = batch.sequence_ids.shape[1], lengths - prompts
    order = np.argsort(owners, kind="stable")  # responses, those of one prompt side by side
    _, first, counts = np.unique(owners[order], return_index=True, return_counts=True)
    heads = order[first]  # (n,) a response of each prompt
    prompt_tokens = prompts[heads]
    sums = np.add.reduceat(responses[order], first)  # (n,) response tokens of each prompt
    prompt_start = np.cumsum(prompt_tokens + sums) - prompt_tokens - sums
    before = np.cumsum(responses[order]) - responses[order]
    before -= np.repeat(before[first], counts)  # response tokens between the prompt and this response
    start = np.empty(len(order), dtype=np.int64)  # (B,) where each response begins
    start[order] = np.repeat(prompt_start + prompt_tokens, counts) + before
    own_prompt = np.empty_like(start)  # (B,) where its prompt begins
    own_prompt[order] = np.repeat(prompt_start, counts)

    total = int(prompt_tokens.sum() + responses.sum())
    origin, position = np.empty(total, dtype=np.int64), np.empty(total, dtype=np.int64)
    prompt_row, prompt_step = _ragged(prompt_tokens)
    response_row, response_step = _ragged(responses)
    at_prompt, at_response = prompt_start[prompt_row] + prompt_step, start[response_row] + response_step
    origin[at_prompt] = heads[prompt_row] * width + prompt_step
    origin[at_response] = response_row * width + prompts[response_row] + response_step
    position[at_prompt], position[at_response] = prompt_step, prompts[response_row] + response_step

    longest_prompt, longest = int(prompt_tokens.max()), max(int(responses.max()), 1)
    steps, columns = np.arange(longest), np.arange(longest_prompt)
    in_prompt = columns < prompt_tokens[:, None]  # (n, P)
    in_response = steps < responses[:, None]  # (B, T)
    prompt_cells = np.where(in_prompt, prompt_start[:, None] + columns, 0)
    response_cells = np.where(in_response, start[:, None] + steps, 0)
    key_cells = np.where(columns < prompts[:, None], own_prompt[:, None] + columns, 0)
    place = np.empty(total, dtype=np.int64)  # where a token's output stands among those of prompts and of responses
    place[at_prompt] = prompt_row * longest_prompt + prompt_step
    place[at_response] = len(heads) * longest_prompt + response_row * longest + response_step

    source = np.where(response_step == 0, own_prompt[response_row] + prompts[response_row], at_response) - 1
    last = np.where(responses == 0, own_prompt + prompts, start + responses) - 1

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(batch.sequence_ids.device)

    prompt_keys, response_keys = tensor(columns < prompts[:, None]), tensor(in_response)
    causal = torch.ones(max(longest, longest_prompt), max(longest, longest_prompt), dtype=torch.bool).tril()
    causal = causal.to(batch.sequence_ids.device)
    own = causal[:longest, :longest] & response_keys[:, None]  # (B, T, T)
    segments = Segments(
        prompts=tensor(prompt_cells),
        prompt_mask=causal[None, None, :longest_prompt, :longest_prompt],
        responses=tensor(response_cells),
        keys=tensor(np.concatenate([key_cells, response_cells], axis=1)),
        mask=torch.cat([prompt_keys[:, None].expand(-1, longest, -1), own], dim=-1)[:, None],
        place=tensor(place),
    )
    ids = batch.sequence_ids.flatten()[tensor(origin)]
    return Packed(ids[None], tensor(position)[None], segments, tensor(source), tensor(last))


def _ragged(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row and step of every cell of rows of the given lengths."""
    rows = np.repeat(np.arange(len(lengths)), lengths)
    return rows, np.arange(lengths.sum()) - np.repeat(lengths.cumsum() - lengths, lengths)


def rows_of(matrix: Tensor, places: Tensor) -> Tensor:
    """matrix[places]: (L, H), (...) -> (..., H). As an embedding, because the gradient of plain indexing is added up in
    any order when several threads compute it."""
    return torch.nn.functional.embedding(places, matrix)


def forward(backbone, packed: Packed) -> Tensor:
    """The backbone's last states, (R, L, H)."""
    if packed.segments is None:
        return backbone(input_ids=packed.input_ids, use_cache=False).last_hidden_state
    if hasattr(backbone, "config") and backbone.config._attn_implementation != ATTENTION:
        raise RuntimeError("a shared row needs a model that shares_prompts has taught: it would see all as one text")
    return backbone(
        input_ids=packed.input_ids,
        position_ids=packed.position_ids,
        attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=packed.input_ids.device),  # so none is made
        segments=packed.segments,
        use_cache=False,
    ).last_hidden_state


def attend(module, query, key, value, attention_mask, dropout=0.0, scaling=None, segments=None, **others):
    """transformers' scaled dot-product attention; with segments that of shared rows, (1, L, heads, head_dim)."""
    if segments is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
    repeats = query.shape[1] // key.shape[1]

    def at(states: Tensor, places: Tensor) -> Tensor:  # (1, heads, L, head_dim), (rows, steps)
        found = rows_of(states[0].transpose(0, 1).flatten(1), places)
        return found.unflatten(-1, (states.shape[1], -1)).transpose(1, 2)  # (rows, heads, steps, head_dim)

    def part(queries: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        output = torch.nn.functional.scaled_dot_product_attention(
            at(query, queries),
            repeat_kv(at(key, keys), repeats),
            repeat_kv(at(value, keys), repeats),
            attn_mask=mask,
            scale=scaling,
        )
        return output.transpose(1, 2).flatten(0, 1)  # (rows x steps, heads, head_dim)

    outputs = [
        part(segments.prompts, segments.prompts, segments.prompt_mask),
        part(segments.responses, segments.keys, segments.mask),
    ]
    return torch.cat(outputs)[segments.place][None], None


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def shares_prompts(*backbones) -> bool:
    """Teach the backbones to take shared rows; False, and nothing is changed, if one of them cannot.

    Layers that see a window of their tokens, or carry a state from one to the next, cannot. Two responses behind one
    prompt must come out as they do alone.
    """
    return all(_can_share(backbone) for backbone in backbones)


@torch.no_grad()
def _can_share(backbone) -> bool:
    config = backbone.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        kinds = ["full_attention"] if getattr(config, "sliding_window", None) is None else ["sliding_attention"]
    if set(kinds) != {"full_attention"} or backbone.config._attn_implementation not in ("sdpa", ATTENTION):
        return False
    device = next(backbone.parameters()).device
    batch = Batch(
        sequence_ids=torch.tensor([[1, 2, 3, 4, 5, 0], [1, 2, 3, 6, 7, 8]], device=device),
        prompt_lengths=torch.tensor([3, 3], device=device),
        response_ids=torch.tensor([[4, 5, 0], [6, 7, 8]], device=device),
        response_mask=torch.tensor([[1, 1, 0], [1, 1, 1]], device=device).bool(),
        sampler_logprobs=torch.zeros(2, 3, device=device),
        rewards=torch.zeros(2, device=device),
        group_size=2,
        groups=torch.zeros(2, dtype=torch.long, device=device),
    )
    usual = backbone.config._attn_implementation
    try:
        backbone.set_attn_implementation(ATTENTION)
        apart, shared = (
            forward(backbone, packed).flatten(0, 1)[packed.source].float()
            for packed in (plain(batch), shared_row(batch))
        )
        tolerance = PROBE_TOLERANCE.get(next(backbone.parameters()).dtype, 3e-2)
        can = bool((apart - shared).abs().max() <= tolerance * apart.abs().max())
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):  # no such argument, mask or attention
        can = False
    if not can:
        backbone.set_attn_implementation(usual)
    return can
