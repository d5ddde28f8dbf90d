"""What a model's layers are made of and what they keep of a token, read from the model itself and not by a formula.

Heads may share keys and values, or cache a latent vector in their place; layers may see a window, or have experts.
"""

import copy
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from algos.pieces.settings import SettingsError
from evaluation.memory.weightless import Weightless


@dataclass(frozen=True)
class Kept:
    """What one layer's key-value cache keeps."""

    numbers: int  # of one token
    window: int | None = None  # of the layer's attention, the current token among it; None: all tokens are kept

    def tokens(self, length: int) -> int:
        """The tokens that are kept of a text."""
        return length if self.window is None else min(length, self.window - 1)


def weightless(config) -> tuple[Any, Any]:
    """A causal language model without weights, and its cache after one token.

    Raises SettingsError if it is none, or one that keeps more than keys and values.
    """
    from transformers import AutoModelForCausalLM

    from algos.training.models.kv_cache import check_keys_and_values

    with Weightless(), torch.no_grad():
        try:
            model = AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=False).eval()
        except ValueError as error:
            raise SettingsError(
                f"model: a config of type {config.model_type!r} is no causal language model "
                f"({str(error).splitlines()[0][:120]}); choose one whose architecture ends in ForCausalLM."
            ) from None
        output = model(input_ids=torch.zeros(1, 1, dtype=torch.long), use_cache=True)
    past = getattr(output, "past_key_values", None)
    try:
        check_keys_and_values(past, getattr(output, "cache_params", None))
    except SettingsError as error:
        raise SettingsError(f"model: {error}") from None
    return model, past


def kept(past) -> tuple[Kept, ...]:
    """What each layer of a cache after one token keeps."""
    return tuple(
        Kept(sum(tensor.numel() for tensor in states(layer).values()), getattr(layer, "sliding_window", None))
        for layer in past.layers
    )


def states(layer) -> dict[str, Tensor]:
    """The tensors of a cache's layer by name, (rows, ..., tokens, width): keys, values, and what else it keeps."""
    return {name: x for name, x in vars(layer).items() if isinstance(x, Tensor) and x.is_floating_point()}


def fill(layer, rows: int, length: int) -> None:
    """Put so many rows and tokens in the place of the one token that a layer of a cache has seen.

    A window is a view of one token more, which came in last.
    """
    window = getattr(layer, "sliding_window", None)
    stored = length if window is None else min(length, window)
    for name, x in states(layer).items():
        full = x.new_zeros(rows, *x.shape[1:-2], stored, x.shape[-1])
        setattr(layer, name, full if window is None else full[..., -window + 1 :, :])
    if window is not None:
        layer.cumulative_length = length


def with_layers(config, count: int):
    """A copy of a transformers config with the first so many layers."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    for name, value in vars(text).items():
        if isinstance(value, list) and len(value) == text.num_hidden_layers:  # layer_types and the like
            setattr(text, name, value[:count])
    text.num_hidden_layers = count
    return config


def state_width(config) -> int:
    """The width of the last states, which the output head takes."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(with_layers(config, 1), trust_remote_code=False)
    return model.get_output_embeddings().weight.shape[-1]


def kinds(config) -> list[Hashable]:
    """Of each layer what its memory depends on: the shapes of its weights, and how it keeps its tokens."""
    from transformers import AutoModelForCausalLM, DynamicCache

    text = config.get_text_config()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=False)
    blocks = next(
        module
        for module in model.modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == text.num_hidden_layers
    )
    caches = [type(layer).__name__ for layer in DynamicCache(config=config).layers]
    caches += [""] * (len(blocks) - len(caches))  # layers that look their keys up in others
    return [
        (cache, *((name, weight.shape) for name, weight in block.named_parameters()))
        for block, cache in zip(blocks, caches, strict=True)
    ]
