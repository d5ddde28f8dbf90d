"""A small policy on disk for the tests of rollout engines. Its heads are as wide as vLLM's kernels for the CPU need."""

from pathlib import Path

import torch
from tiny import tiny_tokenizer

from algos.training.models.checkpoints import build_model, save_policy
from algos.training.models.config import ModelConfig

PROJECT = Path(__file__).parents[3]
TOKENIZER = tiny_tokenizer()
EOS, PAD = TOKENIZER.eos_token_id, TOKENIZER.pad_token_id
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LONG = [3 + i % 60 for i in range(40)]  # more than a block of vLLM's cache, so that a part of it is shared
PROMPTS = [[5, 6, 7, 8, 9], [10, 11, 12], LONG]


def checkpoint_in(path) -> str:
    """A Qwen2-style model with tied embeddings. Its heads have 32 entries each: vLLM's CPU kernels have no smaller."""
    shape = ModelConfig(hidden_size=64, layers=2, heads=2, intermediate_size=96, initializer_range=0.2)
    save_policy(build_model(shape, TOKENIZER, seed=0), TOKENIZER, path)
    return str(path)
