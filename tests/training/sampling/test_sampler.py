"""The sampler: its distribution and log-probabilities, ends of responses, prompts as token ids."""

from dataclasses import replace

import pytest
import torch
from tiny import random_rollouts, tiny_model, tiny_tokenizer
from transformers import MistralConfig, MistralForCausalLM

from algos.pieces.settings import SettingsError
from algos.pieces.types import make_batch
from algos.training.models.logprobs import token_logprobs
from algos.training.models.packing import shares_prompts
from algos.training.models.tokens import encode_prompt
from algos.training.sampling.sampler import decode, sample

TOKENIZER = tiny_tokenizer()


@pytest.fixture
def model():
    return tiny_model(TOKENIZER)


PROMPTS = [[5, 6, 7, 8, 9], [10, 11, 12]]


def draw(model, prompts=PROMPTS, group=4, tokens=10, temperature=1.0, seed=0, **options):
    return sample(model, TOKENIZER, prompts, group, tokens, temperature, torch.Generator().manual_seed(seed), **options)


def test_sampled_log_probabilities_are_the_trainers(model):
    """Left-padded prompts, a key-value cache shared out to groups, rows that leave: the same distribution."""
    rollouts = draw(model, group=16, temperature=0.8, tokens=60)
    batch = make_batch(rollouts, torch.zeros(32), TOKENIZER.pad_token_id)
    assert rollouts.response_mask.sum(1).unique().numel() > 8  # responses of different lengths
    trainer, entropies = token_logprobs(model, batch, 0.8, entropy=True)
    torch.testing.assert_close(trainer.float(), rollouts.sampler_logprobs, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(entropies.float(), rollouts.entropies, atol=1e-5, rtol=1e-4)


def test_the_same_tokens_are_drawn_without_cache_sharing_or_rows_that_leave(model):
    """The plainest sampler there is: a whole forward pass per token and response, each token from its own number."""
    rollouts = draw(model, group=8, tokens=25, seed=3)
    uniforms = torch.rand(16, 25, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for row in range(16):
        ids = list(PROMPTS[row // 8])
        for t in range(25):
            probabilities = torch.softmax(model(torch.tensor([ids])).logits[0, -1].float(), dim=-1)
            cumulative = probabilities.double().cumsum(0) / probabilities.double().sum()
            ids.append(int((cumulative <= uniforms[row, t]).sum()))
            if ids[-1] == TOKENIZER.eos_token_id:
                break
        assert rollouts.response_ids[row][rollouts.response_mask[row]].tolist() == ids[len(PROMPTS[row // 8]) :]


def test_models_whose_cache_is_a_window_are_sampled_with_transformers_own_cache():
    config = MistralConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=6,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    windowed = MistralForCausalLM(config).double().eval()
    rollouts = draw(windowed, group=4, tokens=20)
    batch = make_batch(rollouts, torch.zeros(8), TOKENIZER.pad_token_id)
    torch.testing.assert_close(
        token_logprobs(windowed, batch, 1.0)[0].float(), rollouts.sampler_logprobs, atol=1e-5, rtol=1e-4
    )
    assert not shares_prompts(windowed.model)


def test_responses_end_with_their_first_end_of_sequence(model):
    rollouts = draw(model, tokens=40)
    for ids, mask, truncated in zip(rollouts.response_ids, rollouts.response_mask, rollouts.truncated, strict=True):
        kept = ids[mask].tolist()
        assert truncated == (TOKENIZER.eos_token_id not in kept)
        assert TOKENIZER.eos_token_id not in kept[:-1]
        assert (ids[~mask] == TOKENIZER.pad_token_id).all()
    assert (~rollouts.truncated).any()


def test_sampling_is_deterministic_and_chunks_keep_the_order(model):
    first, again, other = draw(model), draw(model), draw(model, seed=1)
    assert torch.equal(first.response_ids, again.response_ids)
    assert first.response_ids.shape != other.response_ids.shape or not torch.equal(
        first.response_ids, other.response_ids
    )
    for temperature in (0.0, 1.0):  # which rows share a pass has no effect on what is drawn
        one, all_ = (
            draw(model, prompts=PROMPTS * 2, group=2, temperature=temperature, rows_at_once=rows) for rows in (1, 100)
        )
        assert torch.equal(one.response_ids, all_.response_ids)
        torch.testing.assert_close(one.sampler_logprobs, all_.sampler_logprobs)


def test_greedy_sampling_equals_transformers_generate(model):
    got = draw(model, prompts=[PROMPTS[0]], group=1, temperature=0.0, tokens=8)
    expected = model.generate(
        torch.tensor([PROMPTS[0]]),
        max_new_tokens=8,
        do_sample=False,
        eos_token_id=TOKENIZER.eos_token_id,
        pad_token_id=TOKENIZER.pad_token_id,
    )[0, len(PROMPTS[0]) :]
    assert got.response_ids[0][got.response_mask[0]].tolist() == expected.tolist()


def test_sampled_tokens_have_the_models_frequencies(model):
    rollouts = draw(model, prompts=[PROMPTS[1]], group=20_000, tokens=1, rows_at_once=20_000)
    with torch.no_grad():
        p = torch.softmax(model(torch.tensor([PROMPTS[1]])).logits[0, -1], dim=-1)
    counts = torch.bincount(rollouts.response_ids[:, 0], minlength=len(p)) / 20_000
    assert (counts - p).abs().max() < 5 * (p * (1 - p) / 20_000).sqrt().max()


def test_text_survives_the_tokenizer():
    rollouts = random_rollouts(TOKENIZER, [encode_prompt(TOKENIZER, "7+5=")], 1, [1])
    ids = TOKENIZER("7+5=12\n#### 12", add_special_tokens=False)["input_ids"]
    rollouts = replace(
        rollouts, response_ids=torch.tensor([ids]), response_mask=torch.ones(1, len(ids), dtype=torch.bool)
    )
    assert decode(TOKENIZER, rollouts) == ["7+5=12\n#### 12"]
    digits = TOKENIZER.convert_ids_to_tokens(TOKENIZER("2048", add_special_tokens=False)["input_ids"])
    assert digits == ["2", "0", "4", "8"]


def test_a_prompt_over_the_limit_is_refused():
    with pytest.raises(SettingsError, match="more than max_prompt_tokens = 3"):
        encode_prompt(TOKENIZER, "7+5=12", 3)


def test_chat_prompts_go_through_the_tokenizers_template():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}Question: {{ m['content'] }}\n{% endfor %}Answer:"
    assert encode_prompt(tokenizer, [{"role": "user", "content": "7+5"}]) == encode_prompt(
        tokenizer, "Question: 7+5\nAnswer:"
    )
