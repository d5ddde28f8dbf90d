"""The optimizer, its schedule, and one optimizer step with gradient-norm clipping. The same for every stage.

Weights of less than 32 bits get a float32 master each (Micikevicius et al. 2018, arXiv:1710.03740): the gradient of a
micro-batch is added to the master's as soon as it is there and then dropped, the optimizer steps on the masters, and
the weights are the masters rounded. Under AdamW that is 2 + 4 + 4 + 8 bytes a parameter; no update is lost for being
smaller than the spacing of bfloat16, 0.4 to 0.8 % of a weight.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from algos.training.stage.config import OptimizerConfig


def make_optimizer(model: nn.Module, config: OptimizerConfig, total_steps: int, learning_rate: float | None = None):
    """The optimizer that config names, and its learning-rate schedule over total_steps optimizer steps.

    It steps on the masters of weights below 32 bits. A model that had an optimizer before keeps its masters.
    """
    weights = [p for p in model.parameters() if p.requires_grad]
    rounded = [p for p in weights if p.dtype.itemsize < 4]
    for parameter in rounded:
        _give_master(parameter)
    optimizer = OPTIMIZERS[config.name]([master_of(p) for p in weights], learning_rate or config.learning_rate, config)
    if rounded:
        masters = [master_of(p) for p in rounded]
        optimizer.register_step_post_hook(lambda *_: _round(rounded, masters))
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(config, step, total_steps))


def master_of(parameter: Tensor) -> Tensor:
    """The tensor that the optimizer changes: the parameter's float32 master, or else the parameter itself."""
    return getattr(parameter, "master", parameter)


def _give_master(parameter: nn.Parameter) -> None:
    """A float32 clone as parameter.master, to whose gradient every later gradient of the parameter is added."""
    if hasattr(parameter, "master"):
        return
    parameter.master = nn.Parameter(parameter.detach().float())  # type: ignore[attr-defined]
    parameter.register_post_accumulate_grad_hook(_move_gradient)


def _move_gradient(parameter: Tensor) -> None:
    master, gradient = master_of(parameter), parameter.grad
    assert gradient is not None  # the hook runs when the gradient is there
    master.grad = gradient.float() if master.grad is None else master.grad.add_(gradient)
    parameter.grad = None


@torch.no_grad()
def _round(weights: Sequence[Tensor], masters: Sequence[Tensor]) -> None:
    torch._foreach_copy_(list(weights), list(masters))


def _adamw(parameters, learning_rate: float, config: OptimizerConfig):
    return torch.optim.AdamW(parameters, lr=learning_rate, fused=True, **_adam_settings(config))


def _adamw_8bit(parameters, learning_rate: float, config: OptimizerConfig):
    """Moments in 8 bits, block by block (arXiv:2110.02861); those of tensors under 4,096 elements stay float32."""
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(parameters, lr=learning_rate, **_adam_settings(config))


def _adam_settings(config: OptimizerConfig) -> dict:
    return {
        "betas": (config.adam_beta1, config.adam_beta2),
        "eps": config.adam_epsilon,
        "weight_decay": config.weight_decay,
    }


def _adafactor(parameters, learning_rate: float, config: OptimizerConfig):
    """Adafactor (arXiv:1804.04235) as in fairseq, with our own step size: n + m second moments per n x m matrix.

    beta2 is 1 - t^-0.8, an update whose root mean square is above 1 is scaled down to it, and weight decay is decoupled
    as in AdamW. torch.optim.Adafactor is not used: its step is min(lr, 1 / sqrt(t)) times the parameter's own root mean
    square, which cannot be switched off, so that its learning rates mean something else.
    """
    from transformers.optimization import Adafactor

    return Adafactor(
        parameters,
        lr=learning_rate,
        beta1=None,
        weight_decay=config.weight_decay,
        scale_parameter=False,
        relative_step=False,
        warmup_init=False,
    )


OPTIMIZERS = {"adamw": _adamw, "adamw_8bit": _adamw_8bit, "adafactor": _adafactor}


def schedule(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """The factor on the learning rate at an optimizer step, counted from 0.

    transformers.get_scheduler is not used: its warm-up begins at 0, so that its first optimizer step changes nothing.
    """
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    progress = (step - config.warmup_steps) / max(total_steps - config.warmup_steps, 1)
    if config.schedule == "linear":
        return max(1.0 - progress, 0.0)
    if config.schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
    return 1.0


def optimizer_step(model: nn.Module, optimizer, scheduler, max_grad_norm: float | None) -> float:
    """Clip, step, clear. Returns the gradient norm before clipping; raises FloatingPointError if it is not finite."""
    parameters = [master_of(p) for p in model.parameters()]
    norm = nn.utils.clip_grad_norm_(parameters, max_grad_norm or math.inf)
    if not torch.isfinite(norm):
        raise FloatingPointError(f"the gradient norm is {norm.item()}: the loss diverged; try a lower learning rate")
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad(set_to_none=True)
    return norm.item()
