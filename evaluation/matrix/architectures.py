"""Tiny random models of the public architectures, as folders such as users have them."""

from pathlib import Path

import torch

from algos.training.models.checkpoints import save_policy
from algos.training.models.config import ModelConfig
from algos.training.models.imports import import_model

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3,
}  # fmt: skip
MOE = {**SIZES, "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
OLD = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.3}
ARCHITECTURES = {
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


def build(name: str, tokenizer):
    """A random model with this tokenizer's vocabulary. Its dropout is on, as the architecture's own config has it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    sizes = {**special, **ARCHITECTURES[name], "vocab_size": len(tokenizer)}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(name.partition("-")[0], **sizes)).eval()


def saved(name: str, tokenizer, folder: Path) -> Path:
    """The folder of the model, made once."""
    path = folder / name
    if not path.is_dir():
        save_policy(build(name, tokenizer), tokenizer, path)
    return path


def imported(name: str, tokenizer, folder: Path) -> Path:
    """The folder that a study makes of it before any stage. Raises SettingsError for a model that is refused."""
    path = folder / f"{name}-imported"
    if not path.is_dir():
        model, own = import_model(ModelConfig(path=str(saved(name, tokenizer, folder))), chat=False)
        save_policy(model, own, path)
    return path
