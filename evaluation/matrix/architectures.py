"""Tiny random models of the public architectures, as folders such as users have them."""

from pathlib import Path
from typing import Any

import torch

from algos.training.models.checkpoints import save_policy
from algos.training.models.config import ModelConfig
from algos.training.models.imports import import_model
from algos.training.models.tokens import train_tokenizer

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3,
}  # fmt: skip
MOE = {**SIZES, "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 12}
DEEPSEEK = {
    **MOE, **LATENT, "num_key_value_heads": 4, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1,
    "n_group": 1, "topk_group": 1,
}  # fmt: skip
OLD = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.3}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "mistral": {**SIZES, "sliding_window": None},
    "mistral-window": {**SIZES, "sliding_window": 4},
    "qwen2": SIZES,
    "qwen3": {**SIZES, "head_dim": 8},
    "qwen2_moe": {**MOE, "shared_expert_intermediate_size": 16, "output_router_logits": True},
    "qwen3_moe": {**MOE, "head_dim": 8},
    "deepseek_v2": DEEPSEEK,
    "deepseek_v3": DEEPSEEK,
    "gpt_oss": {**MOE, "num_local_experts": 4, "head_dim": 8, "sliding_window": 4},
    "phimoe": {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
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
    "falcon-alibi": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True, "initializer_range": 0.3,
    },
    "falcon-grouped": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "new_decoder_architecture": True,
        "num_kv_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3,
    },
    "gpt_bigcode": {**OLD, "n_inner": 48, "attn_pdrop": 0.1},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64, "initializer_range": 0.3},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "initializer_range": 0.3},
    "mamba2": {
        "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "num_heads": 8, "head_dim": 8, "n_groups": 1,
    },
    "olmo": SIZES,
    "olmo2": SIZES,
    "smollm3": SIZES,
    "stablelm": {**SIZES, "attention_dropout": 0.1},
    "starcoder2": {**SIZES, "residual_dropout": 0.1, "sliding_window": None},
    "olmo3": {**SIZES, "sliding_window": 4},
    "olmoe": {**SIZES, "num_experts": 4, "num_experts_per_tok": 2},
    "glm4": {**SIZES, "head_dim": 8},
    "glm4_moe": {**DEEPSEEK, "head_dim": 8, "num_key_value_heads": 2},
    "ernie4_5": {**SIZES, "head_dim": 8},
    "exaone4": {**SIZES, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "minimax_m2": {**MOE, "num_local_experts": 4, "head_dim": 8, "rotary_dim": 4},
    "nemotron": SIZES,
    "seed_oss": {**SIZES, "head_dim": 8, "attention_dropout": 0.1},
    "jamba": {
        **SIZES, "num_experts": 4, "num_experts_per_tok": 2, "attn_layer_period": 2, "attn_layer_offset": 1,
        "mamba_d_state": 4, "mamba_dt_rank": 4, "use_mamba_kernels": False,
    },
    "qwen3_next": {
        **MOE, "head_dim": 8, "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2,
        "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
        "shared_expert_intermediate_size": 16,
    },
    "lfm2": {**SIZES, "layer_types": ["conv", "full_attention"]},
    "gemma2": {**SIZES, "head_dim": 8},
    "cohere": {**SIZES, "logit_scale": 0.0625},
    "granite": {**SIZES, "logits_scaling": 8.0},
}  # fmt: skip


TEXTS = ["Question: Mia has 7 apples. Mia finds 5 more.\nAnswer:\n", "7+5=12\n12-3=9\n#### 9", "0123456789+-*=#"]


def tokenizer():
    """A tokenizer of digits, signs and a few words."""
    return train_tokenizer(TEXTS * 3, 120)


def tiny_config(name: str, **sizes):
    """transformers' config of an architecture; sizes: others than those of the table."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = name.partition("-")[0]
    config = AutoConfig.for_model(kind, **{**ARCHITECTURES[name], **sizes})
    config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]]
    return config


def build(name: str, tokenizer):
    """A random model with this tokenizer's vocabulary. Its dropout is on, as the architecture's own config has it."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    if "pad_token_id" not in ARCHITECTURES[name]:
        sizes["pad_token_id"] = tokenizer.pad_token_id
    return AutoModelForCausalLM.from_config(tiny_config(name, **sizes), trust_remote_code=False).eval()


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
