"""The key-value cache of sampling: allocated once at its final size, written in place, rows dropped at little cost.

A DynamicCache copies all its keys and values at every token (torch.cat), and whenever finished rows leave.
"""

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer

from algos.pieces.settings import SettingsError


class PreallocatedLayer(CacheLayerMixin):
    """One layer's keys and values, (rows, heads, capacity, head_dim); attention sees views of what is filled."""

    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self, prompt: DynamicLayer, copies: int, room: int):
        """The prompts' keys and values, each row `copies` times side by side, with room for that many more tokens."""
        super().__init__()
        assert prompt.keys is not None and prompt.values is not None  # the prompt has been read
        self.length = prompt.keys.shape[2]
        self.keys = self._grown(prompt.keys, copies, room)
        self.values = self._grown(prompt.values, copies, room)
        self.rows = len(self.keys)
        self.is_initialized = True

    @staticmethod
    def _grown(states: Tensor, copies: int, room: int) -> Tensor:
        rows, heads, length, width = states.shape
        buffer = states.new_empty(rows, copies, heads, length + room, width)
        buffer[..., :length, :] = states[:, None]
        return buffer.flatten(0, 1)

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        start, self.length = self.length, self.length + key_states.shape[2]
        self.keys[: self.rows, :, start : self.length] = key_states
        self.values[: self.rows, :, start : self.length] = value_states
        return self.keys[: self.rows, :, : self.length], self.values[: self.rows, :, : self.length]

    def select(self, index: Tensor, moved: Tensor) -> None:
        """Row i becomes row index[i], which differs from i at the places in `moved` alone."""
        self.keys[moved] = self.keys[index[moved]]
        self.values[moved] = self.values[index[moved]]
        self.rows = len(index)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is lazy here."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return self.keys.shape[2]


class SharedOut:
    """The cache of a prompt's prefill, shared out to its responses. `past` is what the model is given.

    Caches that are not keys and values of all tokens (sliding windows, recurrent states) stay transformers' own.
    """

    def __init__(self, prompts: Cache, copies: int, room: int):
        self.preallocated = all(type(layer) is DynamicLayer for layer in prompts.layers)
        self.past = prompts
        if self.preallocated:
            for i, layer in enumerate(prompts.layers):  # one by one: a layer's prompts are freed before the next
                assert isinstance(layer, DynamicLayer)
                prompts.layers[i] = PreallocatedLayer(layer, copies, room)
        elif copies > 1:
            prompts.batch_repeat_interleave(copies)

    def select(self, index: Tensor, moved: Tensor) -> None:
        """Keep the rows `index`; `moved` are the places where index[i] is not i."""
        if not self.preallocated:
            self.past.batch_select_indices(index)
            return
        for layer in self.past.layers:
            assert isinstance(layer, PreallocatedLayer)
            layer.select(index, moved)


def check_keys_and_values(past, state=None) -> None:
    """Raise SettingsError unless a model keeps keys and values between tokens.

    past: the past_key_values of its output, or None; state: its cache_params, which recurrent models give instead.
    """
    kinds = [type(layer).__name__ for layer in getattr(past, "layers", [])]
    if not kinds and state is None:
        raise SettingsError("it keeps no keys and values of its layers between tokens; such models are not supported.")
    if state is not None or any("Linear" in kind or "Conv" in kind for kind in kinds):
        raise SettingsError(
            "it keeps a recurrent state between tokens, not only keys and values; such models are not supported."
        )


def compacted(live: Tensor) -> tuple[Tensor, Tensor]:
    """How to close the gaps of the rows (b,) bool that are no longer live, moving as few as possible.

    Returns index (m,) of the m live rows, and the places where index[i] is not i: finished rows among the first m,
    each filled by a live row from behind.
    """
    count = int(live.sum())
    index = torch.arange(count, device=live.device)
    gaps = (~live[:count]).nonzero().squeeze(1)
    index[gaps] = live[count:].nonzero().squeeze(1) + count
    return index, gaps
