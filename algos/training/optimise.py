"""The optimiser, its schedule, and one optimiser step with gradient-norm clipping. The same for every stage."""

import math

import torch
from torch import nn

from algos.training.config import OptimiserConfig


def make_optimiser(model: nn.Module, config: OptimiserConfig, total_steps: int, learning_rate: float | None = None):
    """AdamW and its learning-rate schedule over total_steps optimiser steps."""
    optimiser = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=learning_rate or config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        weight_decay=config.weight_decay,
        fused=True,
    )
    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: schedule(config, step, total_steps))


def schedule(config: OptimiserConfig, step: int, total_steps: int) -> float:
    """The factor on the learning rate at an optimiser step, counted from 0."""
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    progress = (step - config.warmup_steps) / max(total_steps - config.warmup_steps, 1)
    if config.schedule == "linear":
        return max(1.0 - progress, 0.0)
    if config.schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
    return 1.0


def optimiser_step(model: nn.Module, optimiser, scheduler, max_grad_norm: float | None) -> float:
    """Clip, step, clear. Returns the gradient norm before clipping; raises FloatingPointError if it is not finite."""
    norm = nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm or math.inf)
    if not torch.isfinite(norm):
        raise FloatingPointError(f"the gradient norm is {norm.item()}: the loss diverged; try a lower learning rate")
    optimiser.step()
    scheduler.step()
    optimiser.zero_grad(set_to_none=True)
    return norm.item()
