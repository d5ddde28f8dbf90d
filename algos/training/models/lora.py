"""Low-rank adapters: W + (alpha / rank) B A, of which only A and B are trained. B starts at 0, so does the change.

Source: Hu et al. 2021, arXiv:2106.09685. Without its adapters the policy is its own reference: no second model.
"""

from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from algos.pieces.settings import SettingsError
from algos.training.config import LoraSettings


def add_adapters(policy, settings: LoraSettings):
    """The policy with adapters in its linear layers, everything else frozen; adapters are float32 at least.

    A is drawn with torch's global generator.

    Raises SettingsError if a target names no linear layer below the output head.
    """
    from peft import LoraConfig, inject_adapter_in_model

    head = policy.get_output_embeddings()
    linear = {name.split(".")[-1] for name, m in policy.named_modules() if isinstance(m, nn.Linear) and m is not head}
    unknown = sorted(set(settings.targets) - linear)
    if unknown:
        known = ", ".join(sorted(linear))
        raise SettingsError(f"lora.targets: {unknown[0]!r} is no linear layer of this model; its layers are {known}.")
    targets = list(settings.targets) or sorted(linear)
    alpha: Any = settings.alpha  # peft says int, and divides it by the rank
    config = LoraConfig(r=settings.rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=targets)
    inject_adapter_in_model(config, policy.requires_grad_(False))
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
    plain = {name.replace(".base_layer.", "."): tensor for name, tensor in state.items() if ".lora_" not in name}
    for name, layer in _adapted(model).items():
        weight = plain[f"{name}.weight"]
        plain[f"{name}.weight"] = weight + layer.get_delta_weight("default").detach().to(weight)
    return plain
