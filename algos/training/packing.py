"""How a batch is cut and laid out for forward passes. Memory and time only: what comes out is the same.

A prompt that several responses share is computed once: they lie in one row, [prompt | response | response | ...], each
response with the positions that follow the prompt's and an attention mask that hides the other responses from it. Rows
are filled with whole groups, first fit, so that little of them is padding.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from algos.training.types import Batch, Packed

ATTENTION_SHARE = 0.5  # the most that attention over a shared row may cost, in units of a layer's matrix products
PROBE_TOLERANCE = 1e-4  # of a packed row's states against separate rows', in units of their largest


@dataclass(frozen=True)
class Layout:
    """How a batch is cut into forward passes. Both limits hold; None: no limit."""

    responses: int | None = None  # of one micro-batch
    tokens: int | None = None  # of one micro-batch, padding included
    row_tokens: int | None = None  # of a row that holds several sequences; None: every sequence a row of its own

    def micro_batches(self, batch: Batch) -> Iterator[tuple[Tensor, Batch]]:
        """Row indices and the laid-out micro-batch of each; every response once. A response is never cut."""
        lengths, prompts, owners = _sizes(batch)
        order = np.argsort(lengths, kind="stable")
        if self.row_tokens is not None:  # responses of one prompt side by side, groups by their size
            totals = np.bincount(owners, lengths - prompts) + _of_each(prompts, owners)
            order = order[np.lexsort((owners[order], totals[owners[order]]))]
        for rows in self._cut(order, lengths, prompts, owners):
            part = batch.select(torch.from_numpy(rows).to(batch.sequence_ids.device))
            yield torch.from_numpy(rows).to(batch.sequence_ids.device), replace(part, packed=self.pack(part))

    def _cut(self, order, lengths, prompts, owners) -> Iterator[np.ndarray]:
        """`order` in pieces within both limits; the padding of shared rows is not known yet and not counted."""
        piece: list[int] = []
        cells, owner = 0, None
        for row in order.tolist():
            if self.row_tokens is None:
                wider = (len(piece) + 1) * int(lengths[row])  # the longest so far: the order is by length
            else:
                wider = cells + int(lengths[row]) - (int(prompts[row]) if owners[row] == owner else 0)
            if piece and (
                (self.responses is not None and len(piece) == self.responses)
                or (self.tokens is not None and wider > self.tokens)
            ):
                yield np.array(piece)
                piece, wider = [], int(lengths[row])
            piece.append(row)
            cells, owner = wider, owners[row]
        yield np.array(piece)

    def pack(self, batch: Batch) -> Packed:
        """The rows of one micro-batch."""
        lengths, prompts, owners = _sizes(batch)
        if self.row_tokens is None:
            return plain(batch)
        bins = _bins(lengths, prompts, owners, self.row_tokens)
        return plain(batch) if len(bins) == len(batch) else _packed(batch, lengths, prompts, bins)


def _sizes(batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(B,) tokens of each sequence, tokens of its prompt, and the number of its prompt among the batch's."""
    prompts = batch.prompt_lengths.cpu().numpy()
    owners = np.arange(len(prompts)) if batch.groups is None else batch.groups.cpu().numpy()
    return batch.lengths.cpu().numpy(), prompts, np.unique(owners, return_inverse=True)[1]


def _of_each(values: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """One value per owner, of values that are the same for all of an owner's rows."""
    result = np.zeros(owners.max() + 1, dtype=values.dtype)
    result[owners] = values
    return result


def plain(batch: Batch) -> Packed:
    """Every sequence its own row. A real token never sees the padding behind it: no mask, no positions are needed."""
    response, step = batch.response_mask.nonzero(as_tuple=True)
    width = batch.sequence_ids.shape[1]
    source = response * width + batch.prompt_lengths[response] - 1 + step
    last = torch.arange(len(batch), device=source.device) * width + batch.lengths - 1
    return Packed(batch.sequence_ids, None, None, source, last)


def _bins(lengths, prompts, owners, capacity: int) -> list[list[list[int]]]:
    """Rows of groups of responses: first fit, the largest groups first; a group that is too large is split."""
    groups: list[list[int]] = []
    sizes: list[int] = []
    for owner in range(owners.max() + 1):
        members = np.flatnonzero(owners == owner).tolist()
        group, size = [], 0
        for row in members:
            added = int(lengths[row] - prompts[row])
            if group and size + added > capacity:
                groups.append(group)
                sizes.append(size)
                group = []
            if not group:
                size = int(prompts[row])
            group, size = [*group, row], size + added
        groups.append(group)
        sizes.append(size)
    limit = max(sizes)
    bins: list[list[list[int]]] = []
    room: list[int] = []
    for number in sorted(range(len(groups)), key=lambda i: -sizes[i]):
        place = next((i for i, left in enumerate(room) if left >= sizes[number]), None)
        if place is None:
            bins.append([])
            room.append(limit)
            place = len(bins) - 1
        bins[place].append(groups[number])
        room[place] -= sizes[number]
    return bins


def _packed(batch: Batch, lengths, prompts, bins: list[list[list[int]]]) -> Packed:
    """One segment per prompt and per response, laid out row by row."""
    segments = []  # (row, start in the row, tokens, start in sequence_ids, first position, segment seen besides itself)
    start_of = {}  # response -> where its first token stands, and its prompt's last one
    width, count = batch.sequence_ids.shape[1], 0
    for row, groups in enumerate(bins):
        start = 0
        for group in groups:
            prompt = int(prompts[group[0]])
            parent = count
            segments.append((row, start, prompt, group[0] * width, 0, parent))
            last, start, count = start + prompt - 1, start + prompt, count + 1
            for member in group:
                tokens = int(lengths[member]) - prompt
                segments.append((row, start, tokens, member * width + prompt, prompt, parent))
                start_of[member] = (row, start, last)
                start, count = start + tokens, count + 1
    rows, starts, tokens, origins, positions, parents = np.array(segments).T
    length = int((starts + tokens).max())
    inside = np.arange(tokens.sum()) - np.repeat(tokens.cumsum() - tokens, tokens)
    cell = np.repeat(rows * length + starts, tokens) + inside
    shape = (len(bins), length)
    source, position = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    segment, parent = np.full(shape, -1), np.full(shape, -1)
    source.flat[cell], position.flat[cell] = np.repeat(origins, tokens) + inside, np.repeat(positions, tokens) + inside
    segment.flat[cell], parent.flat[cell] = np.repeat(np.arange(len(tokens)), tokens), np.repeat(parents, tokens)

    members = np.array([start_of[i] for i in range(len(batch))])  # (B, 3)
    responses = lengths - prompts
    end = members[:, 0] * length + np.where(responses == 0, members[:, 2], members[:, 1] + responses - 1)
    row, start, last = (np.repeat(column, responses) for column in members.T)
    step = np.arange(responses.sum()) - np.repeat(responses.cumsum() - responses, responses)
    predicting = row * length + np.where(step == 0, last, start + step - 1)

    device = batch.sequence_ids.device
    source, position, segment, parent, predicting, end = (
        torch.from_numpy(x).to(device) for x in (source, position, segment, parent, predicting, end)
    )
    seen = (segment[:, None, :] == segment[:, :, None]) | (segment[:, None, :] == parent[:, :, None])
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return Packed(batch.sequence_ids.flatten()[source], position, (seen & causal)[:, None], predicting, end)


def forward(backbone, packed: Packed) -> Tensor:
    """The backbone's last states, (R, L, H)."""
    given = {"position_ids": packed.position_ids, "attention_mask": packed.attention_mask}
    given = {name: value for name, value in given.items() if value is not None}
    return backbone(input_ids=packed.input_ids, use_cache=False, **given).last_hidden_state


def longest_row(backbone) -> int | None:
    """How many tokens a shared row may have on this backbone; None: it cannot share rows.

    Attention over a row of L tokens costs 4 L H floating-point operations a token and layer where the mask is not
    causal, the layer's matrices 2 a parameter; the other responses of a row are computed and masked away.
    """
    config = backbone.config.get_text_config()
    if not _hides_what_the_mask_hides(backbone):
        return None
    embedding = sum(p.numel() for p in backbone.get_input_embeddings().parameters())
    layers = config.num_hidden_layers
    per_layer = (sum(p.numel() for p in backbone.parameters()) - embedding) / layers
    return int(ATTENTION_SHARE * 2 * per_layer / (4 * config.hidden_size))


@torch.no_grad()
def _hides_what_the_mask_hides(backbone) -> bool:
    """Whether two responses behind one prompt come out as they do alone: sliding windows, recurrent states do not."""
    device = next(backbone.parameters()).device
    config = backbone.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        kinds = ["full_attention"] if getattr(config, "sliding_window", None) is None else ["sliding_attention"]
    if set(kinds) != {"full_attention"}:  # a window may be longer than the probe
        return False
    ids = torch.tensor([[1, 2, 3, 4, 5, 0], [1, 2, 3, 6, 7, 8]], device=device)
    batch = Batch(
        sequence_ids=ids,
        prompt_lengths=torch.tensor([3, 3], device=device),
        response_ids=torch.tensor([[4, 5, 0], [6, 7, 8]], device=device),
        response_mask=torch.tensor([[1, 1, 0], [1, 1, 1]], device=device).bool(),
        sampler_logprobs=torch.zeros(2, 3, device=device),
        rewards=torch.zeros(2, device=device),
        group_size=2,
        groups=torch.zeros(2, dtype=torch.long, device=device),
    )
    states = []
    for layout in (Layout(), Layout(row_tokens=8)):
        packed = layout.pack(batch)
        try:
            states.append(forward(backbone, packed).flatten(0, 1)[packed.source].float())
        except (TypeError, ValueError, RuntimeError):  # no such mask, no positions
            return False
    tolerance = PROBE_TOLERANCE if next(backbone.parameters()).dtype == torch.float32 else 3e-2
    return bool((states[0] - states[1]).abs().max() <= tolerance * states[0].abs().max())
