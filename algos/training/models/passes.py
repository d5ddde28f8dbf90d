"""How a model's training passes run: activations computed again instead of kept, the backbone compiled.

Neither changes what is computed, up to rounding. Both are for passes without a key-value cache: sampling stays as it
is.
"""

import functools
import os
import shutil

import torch
from torch import nn

from algos.pieces.settings import SettingsError


def recompute_activations(backbone) -> None:
    """Gradient checkpointing (Chen et al. 2016, arXiv:1604.06174): a layer keeps its input, and runs again backward.

    transformers does so in training mode only, in which a layer has no cache; so each layer is in training mode exactly
    while gradients are wanted. The modules inside of the layers stay in evaluation mode. Raises SettingsError if the
    architecture has no such layers.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in backbone.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers or not backbone.supports_gradient_checkpointing:
        raise SettingsError(
            f"gradient_checkpointing: {type(backbone).__name__} has no layers that transformers can run again; set it "
            "to false."
        )
    backbone.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})

    def only_with_gradients(*_) -> None:
        for layer in layers:
            layer.training = torch.is_grad_enabled()  # of the layer itself: its parts keep their mode

    backbone.register_forward_pre_hook(only_with_gradients)


def compile_passes(backbone: nn.Module, device: torch.device) -> None:
    """torch.compile, once for all lengths, of the passes that the log-probabilities, values and losses are made of.

    Raises SettingsError where there is no compiler to compile with.
    """
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise SettingsError(
            f"compile: on the CPU it needs a C++ compiler, and there is no {compiler}; set it to false."
        )
    plain = backbone.forward
    compiled = torch.compile(plain, dynamic=True)

    @functools.wraps(plain)
    def forward(*args, **kwargs):
        return (compiled if kwargs.get("use_cache") is False else plain)(*args, **kwargs)

    backbone.forward = forward
