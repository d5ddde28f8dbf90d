"""Tiny random models of the public architectures: each is imported and comes out right, or is refused by name.

Right: greedy sampling of prompts of different length equals transformers' generate of each alone, and the
log-probabilities that training uses equal those of a plain forward pass, prompts shared or not.
"""

import pytest
import torch
from tiny import random_rollouts, tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from algos.pieces.settings import SettingsError
from algos.pieces.types import make_batch
from algos.training.models.checkpoints import ScalarModel, load_policy, save_policy
from algos.training.models.config import ModelConfig
from algos.training.models.imports import import_model
from algos.training.models.logprobs import token_logprobs
from algos.training.models.packing import Layout, shares_prompts
from algos.training.models.tokens import load_tokenizer
from algos.training.sampling.sampler import sample

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3,
}  # fmt: skip
MOE = {**SIZES, "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
OLD = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.3}
MODELS = {
    "llama": SIZES,
    "mistral": {**SIZES, "sliding_window": None},
    "mistral-window": {**SIZES, "sliding_window": 4},
    "qwen2": SIZES,
    "qwen3": {**SIZES, "head_dim": 8},
    "qwen2_moe": {**MOE, "shared_expert_intermediate_size": 16, "output_router_logits": True},
    "qwen3_moe": {**MOE, "head_dim": 8},
    "mixtral": {**SIZES, "num_local_experts": 4, "router_jitter_noise": 0.1},
    "gemma": {**SIZES, "head_dim": 8},
    "gemma3_text": {**SIZES, "head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8},
    "phi": {**SIZES, "resid_pdrop": 0.1},
    "phi3": {**SIZES, "resid_pdrop": 0.1, "pad_token_id": 0},
    "gpt2": OLD,
    "gpt_neo": {
        "hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 64, "window_size": 4,
        "attention_types": [[["global", "local"], 1]], "initializer_range": 0.3,
    },
    "gpt_neox": {**SIZES, "hidden_dropout": 0.1},
    "gptj": {**OLD, "rotary_dim": 4},
    "opt": {
        "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "dropout": 0.1,
        "max_position_embeddings": 64, "word_embed_proj_dim": 16, "init_std": 0.3, "do_layer_norm_before": False,
    },
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "hidden_dropout": 0.1, "initializer_range": 0.3},
    "falcon": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "attention_dropout": 0.1,
        "max_position_embeddings": 64, "initializer_range": 0.3,
    },
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64, "initializer_range": 0.3},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "initializer_range": 0.3},
    "mamba2": {
        "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "num_heads": 8, "head_dim": 8, "n_groups": 1,
    },
    "olmo2": SIZES,
    "stablelm": {**SIZES, "attention_dropout": 0.1},
    "starcoder2": {**SIZES, "residual_dropout": 0.1, "sliding_window": None},
    "lfm2": {**SIZES, "layer_types": ["conv", "full_attention"]},
    "gemma2": {**SIZES, "head_dim": 8},
    "cohere": {**SIZES, "logit_scale": 0.0625},
    "granite": {**SIZES, "logits_scaling": 8.0},
}  # fmt: skip
RECURRENT = "it keeps a recurrent state between tokens, not only keys and values; such models are not supported"
REFUSED = {
    "mamba": RECURRENT,
    "mamba2": RECURRENT,
    "lfm2": RECURRENT,
    "gemma2": r"its logits are scaled or soft-capped \(final_logit_softcapping\)",
    "cohere": r"its logits are scaled or soft-capped \(logit_scale\)",
    "granite": r"its logits are scaled or soft-capped \(logits_scaling\)",
}
PROMPTS = [[5, 9, 17, 4, 30, 8, 21], [11, 6, 3]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


def saved(name: str, folder):
    """A folder as users have them: a random model, with its dropout on, and a tokenizer."""
    path = folder / name
    if not path.is_dir():
        tokenizer = tiny_tokenizer()
        torch.manual_seed(0)
        special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
        config = AutoConfig.for_model(
            name.partition("-")[0], **{**special, **MODELS[name], "vocab_size": len(tokenizer)}
        )
        save_policy(AutoModelForCausalLM.from_config(config).eval(), tokenizer, path)
    return path


@pytest.mark.parametrize("name", sorted(set(MODELS) - set(REFUSED)))
def test_a_model_comes_out_right(name, folder):
    model, tokenizer = import_model(ModelConfig(path=str(saved(name, folder))), chat=False)
    save_policy(model, tokenizer, folder / name / "imported")
    model, tokenizer = (
        load_policy(folder / name / "imported", torch.device("cpu")),
        load_tokenizer(folder / name / "imported"),
    )
    generator = torch.Generator().manual_seed(0)
    rollouts = sample(model, tokenizer, PROMPTS, 2, 12, 0.0, generator)
    for row, prompt in enumerate(PROMPTS):
        alone = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
            max_new_tokens=12,
        )[0, len(prompt) :]  # fmt: skip
        for response in (2 * row, 2 * row + 1):
            assert rollouts.response_ids[response][rollouts.response_mask[response]].tolist() == alone.tolist()

    rollouts = random_rollouts(tokenizer, PROMPTS, 2, [5, 3, 6, 2])
    batch = make_batch(rollouts, torch.zeros(4), tokenizer.pad_token_id)
    model.train()  # dropout must be off in training passes
    layouts = [Layout(), Layout(responses=3)] + [Layout(share_prompts=True)] * shares_prompts(model.base_model)
    for layout in layouts:
        for rows, part in layout.micro_batches(batch):
            logprobs, _ = token_logprobs(model, part, 1.0)
            for i, row in enumerate(rows.tolist()):
                prompt, length = PROMPTS[row // 2], int(rollouts.response_mask[row].sum())
                ids = torch.tensor(prompt + rollouts.response_ids[row, :length].tolist())
                logits = model.eval()(input_ids=ids[None], use_cache=False).logits[0, len(prompt) - 1 : -1]
                model.train()
                plain = logits.log_softmax(dim=-1).gather(1, ids[len(prompt) :, None]).squeeze(1)
                torch.testing.assert_close(logprobs[i, :length], plain, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("name", sorted(set(MODELS) - set(REFUSED)))
def test_a_model_takes_a_scalar_head(name, folder):
    critic = ScalarModel.from_policy(saved(name, folder), "linear", 0.1, torch.device("cpu"))
    batch = make_batch(random_rollouts(tiny_tokenizer(), PROMPTS, 2, [5, 3, 6, 2]), torch.zeros(4), 0)
    scores = critic.batch_scores(batch)
    assert scores.shape == (4,) and torch.isfinite(scores).all()


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_model_that_would_be_wrong_is_refused(name, folder):
    with pytest.raises(SettingsError, match=REFUSED[name]):
        import_model(ModelConfig(path=str(saved(name, folder))), chat=False)
