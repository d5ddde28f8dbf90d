"""A fingerprint of a model's weights: the same on both sides of a weight synchronization, whatever it fuses or renames.

Every element's bits are mixed into 64 bits and added up, so that neither the order nor the fusing of tensors (queries,
keys and values into one) changes the sum; a changed bit does. Sums are kept by layer, so that exchanged layers show.
Zeros count nothing: an engine may pad its vocabulary with them.
"""

import re
from collections.abc import Iterable

import torch
from torch import Tensor

LAYER = re.compile(r"\.(\d+)\.")
MULTIPLIERS = (-7046029254386353131, -4658895280553007687)  # splitmix64's, odd, as signed numbers
CHUNK = 1 << 22  # elements at once: their 64-bit copies need memory
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def fingerprint(parameters: Iterable[tuple[str, Tensor]], dtype: torch.dtype | None = None) -> dict[str, int]:
    """Layer number, or "" for what stands outside the layers -> 64-bit sum. dtype: as if the weights were cast to it.

    A parameter that two names share must come once, as named_parameters gives it.
    """
    sums: dict[str, Tensor] = {}
    for name, parameter in parameters:
        found = LAYER.search(name)
        layer = found[1] if found else ""
        for chunk in parameter.detach().flatten().split(CHUNK):
            total = _mixed(chunk if dtype is None else chunk.to(dtype)).sum()
            sums[layer] = sums[layer] + total if layer in sums else total
    return {layer: int(total) for layer, total in sums.items()}


def _mixed(values: Tensor) -> Tensor:
    """The bits of each value, spread over 64; 0 for 0."""
    bits = values.contiguous().view(BITS[values.element_size()]).long() & ((1 << 8 * min(values.element_size(), 7)) - 1)
    for multiplier in MULTIPLIERS:
        bits = bits * multiplier
        bits = bits ^ (bits >> 31)
    return bits


def differing(ours: dict[str, int], theirs: dict[str, int]) -> list[str]:
    """The layers whose weights differ, in words."""
    layers = sorted({*ours, *theirs}, key=lambda layer: (layer == "", int(layer or 0)))
    return [f"layer {x}" if x else "embeddings and head" for x in layers if ours.get(x) != theirs.get(x)]
