"""Low-rank adapters: W + (alpha / rank) B A, of which only A and B are trained. B starts at 0, so does the change.

Source: Hu et al. 2021, arXiv:2106.09685. Without its adapters the policy is its own reference: no second model.
"""

from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from algos.pieces.settings import SettingsError
from algos.training.config import LoraSettings


def adaptable(policy) -> dict[str, nn.Parameter]:
    """The weights that adapters can change, by name: those of linear layers below the output head, and fused experts.

    Experts are fused where a layer keeps all of them as one tensor of three dimensions.
    """
    from transformers.pytorch_utils import Conv1D

    head = policy.get_output_embeddings()
    found: dict[str, nn.Parameter] = {}
    for name, module in policy.named_modules():
        if isinstance(module, (nn.Linear, Conv1D)):
            if module is not head and not hasattr(module, "top_k"):  # a router gives more than a tensor
                found[f"{name}.weight"] = module.get_parameter("weight")
        elif not type(module).__module__.startswith("torch.nn"):
            own = module.named_parameters(recurse=False)
            found |= {f"{name}.{tensor}": weight for tensor, weight in own if _fused(weight)}
    return found


def _fused(weight: Tensor) -> bool:
    return weight.dim() == 3


def target(name: str) -> str:
    """What a study file calls a weight: the name of its linear layer, or of the experts' tensor."""
    return name.removesuffix(".weight").split(".")[-1]


def add_adapters(policy, settings: LoraSettings):
    """The policy with adapters in its linear layers, everything else frozen; adapters are float32 at least.

    A is drawn with torch's global generator.

    Raises SettingsError if a target names no linear layer below the output head.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from transformers.pytorch_utils import Conv1D

    weights = adaptable(policy)
    known = sorted({target(name) for name in weights})
    if unknown := sorted(set(settings.targets) - set(known)):
        raise SettingsError(
            f"lora.targets: {unknown[0]!r} is no linear layer of this model; its layers are {', '.join(known)}."
        )
    chosen = {f"policy.{n}": w for n, w in weights.items() if not settings.targets or target(n) in settings.targets}
    alpha: Any = settings.alpha  # peft says int, and divides it by the rank
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules=[name.removesuffix(".weight") for name, weight in chosen.items() if not _fused(weight)],
        target_parameters=[name for name, weight in chosen.items() if _fused(weight)],
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in policy.modules()),
    )
    # where peft finds a model's config, it takes linear layers named like experts of old (gate_proj) for fused ones
    holder = nn.Module()
    holder.policy = policy.requires_grad_(False)
    inject_adapter_in_model(config, holder)
    for parameter in policy.parameters():
        if parameter.requires_grad and parameter.dtype.itemsize < 4:  # they are small, and trained
            parameter.data = parameter.data.float()
    return policy


def _adapted(policy) -> dict[str, Any]:
    """The layers that have an adapter, by name."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: module for name, module in policy.named_modules() if isinstance(module, BaseTunerLayer)}


@contextmanager
def adapters_off(policy):
    """Within, the policy computes as it did before training."""
    layers = _adapted(policy).values()
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


class WithoutAdapters:
    """The policy as it was before training, as a model of its own that has no weights."""

    def __init__(self, policy):
        self.policy = policy

    def base_model(self, **inputs):
        with adapters_off(self.policy):
            return self.policy.base_model(**inputs)

    def get_output_embeddings(self) -> nn.Module:
        return self.policy.get_output_embeddings()


def merged(model, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a plain model from those of one with adapters; state itself if it has none."""
    if not any(".base_layer." in name for name in state):
        return state
    plain = {_plain(name): tensor for name, tensor in state.items() if ".lora_" not in name}
    for name, layer in _adapted(model).items():
        changed = _plain(f"{name}.{getattr(layer, 'parameter_name', 'weight')}")
        plain[changed] = plain[changed] + _change(layer).to(plain[changed])
    return plain


def _plain(name: str) -> str:
    """The name of a weight without the adapters around it: two of them are nested, where both tensors of a layer's
    experts have one."""
    return name.replace(".base_layer", "")


@torch.no_grad()
def _change(layer) -> Tensor:
    """(alpha / rank) B A, in the adapters' precision: peft rounds that of experts to what the layer computes in."""
    if not hasattr(layer, "parameter_name"):
        return layer.get_delta_weight("default")
    with patch.object(layer, "get_param", lambda: layer.lora_A["default"].weight):
        return layer.get_delta_weight("default")
