"""A tiny model, tokenizer and batch for tests: a real transformer of a few thousand parameters, in float64."""

import torch

from algos.pieces.types import Rollouts
from algos.training.models.checkpoints import build_model
from algos.training.models.config import ModelConfig
from algos.training.models.tokens import train_tokenizer

TEXTS = ["Question: Mia has 7 apples. Mia finds 5 more.\nAnswer:\n", "7+5=12\n12-3=9\n#### 9", "0123456789+-*=#"]


def tiny_tokenizer():
    return train_tokenizer(TEXTS * 3, 120)


def tiny_model(tokenizer, seed: int = 0, dtype=torch.float64):
    config = ModelConfig(hidden_size=16, layers=2, heads=2, intermediate_size=32, initializer_range=0.2)
    return build_model(config, tokenizer, seed).to(dtype).eval()


def random_rollouts(
    tokenizer, prompts: list[list[int]], group_size: int, lengths: list[int], seed: int = 0
) -> Rollouts:
    """Rollouts with random tokens of the given response lengths, each ending in end-of-sequence."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    ids = torch.randint(3, len(tokenizer), (len(lengths), width), generator=generator)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    ids[torch.arange(len(lengths)), torch.tensor(lengths) - 1] = tokenizer.eos_token_id
    ids = torch.where(mask, ids, tokenizer.pad_token_id)
    return Rollouts(prompts, group_size, ids, mask, torch.zeros(ids.shape), torch.zeros(len(lengths), dtype=torch.bool))


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
