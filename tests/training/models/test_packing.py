"""Shared rows: what lies in them, what sees what, and that a model gives the same states as for separate rows."""

from dataclasses import replace

import pytest
import torch
from tiny import gradients, random_rollouts, tiny_model, tiny_tokenizer
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from algos.pieces.types import Batch, make_batch
from algos.training.models.kv_cache import compacted
from algos.training.models.logprobs import hidden_states, token_logprobs
from algos.training.models.packing import Layout, plain, shared_row, shares_prompts
from algos.training.sampling.sampler import sample

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
    packed = shared_row(two_responses())
    assert packed.input_ids.tolist() == [[5, 6, 7, 8, 9, 10, 11]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 2, 3, 4]]
    assert packed.source.tolist() == [1, 2, 1, 4, 5]  # both first tokens are predicted by the prompt's last
    assert packed.last.tolist() == [3, 6]
    segments = packed.segments
    assert segments.prompts.tolist() == [[0, 1]]
    assert segments.prompt_mask[0, 0].int().tolist() == [[1, 0], [1, 1]]
    assert segments.responses.tolist() == [[2, 3, 0], [4, 5, 6]]
    assert segments.keys.tolist() == [[0, 1, 2, 3, 0], [0, 1, 4, 5, 6]]
    assert segments.mask[:, 0].int().tolist() == [
        [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0]],  # the third token is padding, and sees anything
        [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]],
    ]
    assert segments.place.tolist() == [0, 1, 2, 3, 5, 6, 7]


def test_a_plain_layout_by_hand():
    packed = plain(two_responses())
    assert packed.segments is None and packed.position_ids is None
    assert packed.input_ids.tolist() == [[5, 6, 7, 8, 0], [5, 6, 9, 10, 11]]
    assert packed.source.tolist() == [1, 2, 5 + 1, 5 + 2, 5 + 3]
    assert packed.last.tolist() == [3, 9]


def test_a_shared_row_holds_each_prompt_once_and_no_padding(batch):
    packed = shared_row(batch)
    assert packed.input_ids.shape == (1, 5 + 3 + 7 + sum(LENGTHS))
    some = batch.select(torch.tensor([8, 4, 5, 0]))  # prompts of 7, 3 and 5 tokens
    assert shared_row(some).input_ids.shape == (1, 7 + 3 + 5 + 4 + 6 + 3 + 4)
    alone = replace(some, groups=None)  # nothing is known of the prompts: none is shared
    assert shared_row(alone).input_ids.shape == (1, 7 + 3 + 3 + 5 + 4 + 6 + 3 + 4)


def grouped_queries(**options):
    torch.manual_seed(0)
    shape = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4)
    config = LlamaConfig(vocab_size=len(TOKENIZER), num_key_value_heads=2, initializer_range=0.2, **shape, **options)
    return LlamaForCausalLM(config).double().eval()


@pytest.mark.parametrize("make", [lambda: tiny_model(TOKENIZER), grouped_queries])
@pytest.mark.parametrize("rows", [range(12), [0], [3, 9], [11, 0, 5, 4, 1, 10]])
def test_states_and_gradients_of_a_shared_row_are_those_of_separate_rows(batch, make, rows):
    model = make()
    assert shares_prompts(model.base_model)
    part = batch.select(torch.tensor(list(rows)))
    found = []
    for packed in (plain(part), shared_row(part)):
        model.zero_grad()
        states = hidden_states(model.base_model, replace(part, packed=packed))
        (states * torch.arange(states.numel()).view_as(states).sin()).sum().backward()
        found.append((states.detach(), gradients(model)))
    torch.testing.assert_close(found[0][0], found[1][0])
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, atol=1e-4, rtol=1e-5)  # norms compute in float32


def test_an_empty_response_leaves_its_prompt_and_the_others_alone(batch):
    model = tiny_model(TOKENIZER)
    assert shares_prompts(model.base_model)
    mask = batch.response_mask.clone()
    mask[[1, 8, 9, 10, 11]] = False  # one of a group, and a whole group
    empty = replace(batch, response_mask=mask)
    expected = hidden_states(model.base_model, replace(empty, packed=plain(empty)))
    torch.testing.assert_close(hidden_states(model.base_model, replace(empty, packed=shared_row(empty))), expected)


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("limits", [(None, None), (1, None), (5, None), (None, 30), (None, 1), (3, 40)])
def test_every_response_is_in_one_micro_batch_within_the_limits(batch, limits, share):
    layout = Layout(*limits, share)
    rows = []
    for chosen, part in layout.micro_batches(batch):
        rows += chosen.tolist()
        assert limits[0] is None or len(chosen) <= limits[0]
        if limits[1] is not None and len(chosen) > 1:
            assert part.packed.input_ids.numel() <= limits[1]
        assert len(part.packed.source) == int(part.response_mask.sum())
    assert sorted(rows) == list(range(12))


def test_a_response_changes_nothing_in_its_neighbors(batch):
    model = tiny_model(TOKENIZER)
    assert shares_prompts(model.base_model)
    ids, responses = batch.sequence_ids.clone(), batch.response_ids.clone()
    ids[1, 6], responses[1, 1] = 33, 33
    other = replace(batch, sequence_ids=ids, response_ids=responses)
    before, after = (token_logprobs(model, replace(each, packed=shared_row(each)), 1.0)[0] for each in (batch, other))
    assert (before != after).any(dim=1).tolist() == [i == 1 for i in range(12)]


def test_a_shared_prompt_is_computed_once(batch):
    """2 floating-point operations a parameter and token, embeddings apart; a layer has 2,560 matrix parameters."""
    model = tiny_model(TOKENIZER)
    assert shares_prompts(model.base_model)
    flops = []
    for packed in (plain(batch), shared_row(batch)):
        with FlopCounterMode(display=False) as counter:
            hidden_states(model.base_model, replace(batch, packed=packed))
        counts = counter.get_flop_counts()["Global"]
        flops.append(sum(n for op, n in counts.items() if "mm" in str(op)))
    matrices = 2 * 2 * (4 * 16 * 16 + 3 * 16 * 32)  # of two layers
    tokens = [12 * batch.sequence_ids.shape[1], 15 + sum(LENGTHS)]
    assert flops == pytest.approx([n * matrices for n in tokens], rel=2e-3)  # and rotary angles


def test_a_model_that_cannot_is_left_as_it_was():
    class Deaf(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.config = inner, inner.config

        def set_attn_implementation(self, name):
            self.inner.set_attn_implementation(name)

        def forward(self, input_ids, use_cache, position_ids=None, attention_mask=None, segments=None):
            return self.inner(input_ids=input_ids, use_cache=use_cache)

    class Old(Deaf):
        def forward(self, input_ids, use_cache):
            return self.inner(input_ids=input_ids, use_cache=use_cache)

    for kind in (Deaf, Old):
        backbone = kind(tiny_model(TOKENIZER).base_model)
        assert not shares_prompts(backbone)
        assert backbone.config._attn_implementation == "sdpa"
    eager = tiny_model(TOKENIZER).base_model
    eager.set_attn_implementation("eager")
    assert not shares_prompts(eager)


def test_a_model_that_was_not_taught_takes_no_shared_row(batch):
    model = tiny_model(TOKENIZER)
    with pytest.raises(RuntimeError, match="needs a model that shares_prompts has taught"):
        hidden_states(model.base_model, replace(batch, packed=shared_row(batch)))


def test_sampling_and_saving_do_not_notice(tmp_path):
    model, other = tiny_model(TOKENIZER), tiny_model(TOKENIZER)
    assert shares_prompts(model.base_model)
    drawn = [sample(m, TOKENIZER, PROMPTS, 4, 12, 1.0, torch.Generator().manual_seed(0)) for m in (model, other)]
    assert torch.equal(drawn[0].response_ids, drawn[1].response_ids)
    model.save_pretrained(tmp_path)
    assert "sdpa_of_segments" not in (tmp_path / "config.json").read_text()


def test_gaps_are_closed_by_moving_the_rows_from_behind():
    index, gaps = compacted(torch.tensor([1, 0, 1, 0, 1, 1]).bool())
    assert index.tolist() == [0, 4, 2, 5] and gaps.tolist() == [1, 3]
    index, gaps = compacted(torch.tensor([1, 1, 0]).bool())
    assert index.tolist() == [0, 1] and gaps.tolist() == []
    assert compacted(torch.tensor([0, 0]).bool())[0].tolist() == []
