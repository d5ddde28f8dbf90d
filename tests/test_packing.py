"""Shared rows: what lies in them, what sees what, and that a model gives the same states as for separate rows."""

import copy
from dataclasses import replace

import pytest
import torch
from tiny import random_rollouts, tiny_model, tiny_tokenizer

from algos.training.kv_cache import compacted
from algos.training.logprobs import hidden_states, token_logprobs
from algos.training.packing import Layout, longest_row, plain
from algos.training.types import Batch, make_batch

TOKENIZER = tiny_tokenizer()
PROMPTS = [[5, 6, 7, 8, 9], [10, 11, 12], [20] * 7]
LENGTHS = [4, 7, 1, 5, 6, 3, 7, 2, 4, 4, 9, 1]


@pytest.fixture
def batch():
    rollouts = random_rollouts(TOKENIZER, PROMPTS, 4, LENGTHS)
    return make_batch(rollouts, torch.arange(12, dtype=torch.float64), TOKENIZER.pad_token_id)


def two_responses() -> Batch:
    return Batch(
        sequence_ids=torch.tensor([[5, 6, 7, 8, 0], [5, 6, 9, 10, 11]]),
        prompt_lengths=torch.tensor([2, 2]),
        response_ids=torch.tensor([[7, 8, 0], [9, 10, 11]]),
        response_mask=torch.tensor([[1, 1, 0], [1, 1, 1]]).bool(),
        sampler_logprobs=torch.zeros(2, 3),
        rewards=torch.zeros(2),
        group_size=2,
        groups=torch.tensor([3, 3]),
    )


def test_a_shared_row_by_hand():
    packed = Layout(row_tokens=10).pack(two_responses())
    assert packed.input_ids.tolist() == [[5, 6, 7, 8, 9, 10, 11]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 2, 3, 4]]
    assert packed.source.tolist() == [1, 2, 1, 4, 5]  # both first tokens are predicted by the prompt's last
    assert packed.last.tolist() == [3, 6]
    assert packed.attention_mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0],
        [1, 1, 0, 0, 1, 1, 0],
        [1, 1, 0, 0, 1, 1, 1],
    ]


def test_rows_that_hold_one_response_each_are_plain():
    packed = Layout(row_tokens=5).pack(two_responses())
    assert packed.attention_mask is None and packed.position_ids is None
    assert packed.input_ids.tolist() == [[5, 6, 7, 8, 0], [5, 6, 9, 10, 11]]
    assert packed.source.tolist() == [1, 2, 5 + 1, 5 + 2, 5 + 3]
    assert packed.last.tolist() == [3, 9]


def test_whole_groups_are_filled_into_rows_and_large_ones_are_split(batch):
    packed = Layout(row_tokens=36).pack(batch)  # the groups have 22, 21 and 25 tokens
    assert packed.input_ids.shape == (3, 25)
    packed = Layout(row_tokens=60).pack(batch)
    assert packed.input_ids.shape == (3, 25)  # a row is as long as the largest group, not as it may be
    packed = Layout(row_tokens=16).pack(batch)  # 5 + 4 + 7 | 5 + 1 + 5 | ...
    assert packed.input_ids.shape[1] == 16 and packed.input_ids.shape[0] > 3
    few = batch.select(torch.tensor([0, 4, 5, 8]))  # 9, 12, 11 tokens: two fit into none of the others' rows
    assert Layout(row_tokens=30).pack(few).input_ids.shape == (3, 12)


@pytest.mark.parametrize("row_tokens", [16, 25, 60, 1000])
def test_states_of_shared_rows_are_those_of_separate_rows(batch, row_tokens):
    model = tiny_model(TOKENIZER)
    shuffled = batch.select(torch.randperm(12, generator=torch.Generator().manual_seed(1)))
    expected = hidden_states(model.base_model, shuffled)
    packed = Layout(row_tokens=row_tokens).pack(shuffled)
    assert packed.input_ids.numel() < plain(shuffled).input_ids.numel()
    torch.testing.assert_close(hidden_states(model.base_model, replace(shuffled, packed=packed)), expected)


@pytest.mark.parametrize("row_tokens", [None, 16, 60])
@pytest.mark.parametrize("limits", [(None, None), (1, None), (5, None), (None, 30), (None, 1), (3, 40)])
def test_every_response_is_in_one_micro_batch_within_the_limits(batch, limits, row_tokens):
    layout = Layout(*limits, row_tokens)
    rows = []
    for chosen, part in layout.micro_batches(batch):
        rows += chosen.tolist()
        assert limits[0] is None or len(chosen) <= limits[0]
        if limits[1] is not None and len(chosen) > 1 and row_tokens is None:
            assert part.packed.input_ids.numel() <= limits[1]
        assert len(part.packed.source) == int(part.response_mask.sum())
    assert sorted(rows) == list(range(12))


def test_a_row_hides_every_response_from_the_others(batch):
    """Another token in one response changes nothing in its neighbours."""
    model = tiny_model(TOKENIZER)
    layout = Layout(row_tokens=60)
    packed = replace(batch, packed=layout.pack(batch))
    ids, responses = batch.sequence_ids.clone(), batch.response_ids.clone()
    ids[1, 6], responses[1, 1] = 33, 33
    other = replace(batch, sequence_ids=ids, response_ids=responses)
    other = replace(other, packed=layout.pack(other))
    before, after = token_logprobs(model, packed, 1.0)[0], token_logprobs(model, other, 1.0)[0]
    changed = (before != after).any(dim=1)
    assert changed.tolist() == [i == 1 for i in range(12)]


def test_a_row_is_no_longer_than_attention_may_cost():
    """Parameters of a layer: 4 x 256 of attention, 48 of its biases, 3 x 512, two norms of 16; and the last norm."""
    model = tiny_model(TOKENIZER)
    per_layer = (2 * (4 * 256 + 48 + 3 * 512 + 32) + 16) / 2
    assert longest_row(model.base_model) == int(0.5 * 2 * per_layer / 64)


def test_a_model_without_positions_or_masks_shares_no_rows():
    class Deaf(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.config = inner, inner.config

        def get_input_embeddings(self):
            return self.inner.get_input_embeddings()

        def forward(self, input_ids, use_cache, position_ids=None, attention_mask=None):
            return self.inner(input_ids=input_ids, use_cache=use_cache)

    class Old(Deaf):
        def forward(self, input_ids, use_cache):
            return self.inner(input_ids=input_ids, use_cache=use_cache)

    backbone = tiny_model(TOKENIZER).base_model
    assert longest_row(backbone) is not None
    assert longest_row(Deaf(copy.deepcopy(backbone))) is None
    assert longest_row(Old(copy.deepcopy(backbone))) is None


def test_gaps_are_closed_by_moving_the_rows_from_behind():
    index, gaps = compacted(torch.tensor([1, 0, 1, 0, 1, 1]).bool())
    assert index.tolist() == [0, 4, 2, 5] and gaps.tolist() == [1, 3]
    index, gaps = compacted(torch.tensor([1, 1, 0]).bool())
    assert index.tolist() == [0, 1] and gaps.tolist() == []
    assert compacted(torch.tensor([0, 0]).bool())[0].tolist() == []
