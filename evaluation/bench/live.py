"""Bytes of the tensors that are alive, counted storage by storage; the same on the CPU and on CUDA."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """While active: `now` and `peak` bytes of tensors made inside. evaluation.memory.live_tensors says whose they are.

    Views and in-place operations add nothing, and what is freed is gone at once. Not seen: what a kernel allocates
    for itself.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.seen: dict[int, weakref.finalize] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.count(tensor)
        return result

    def count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.seen:
            return
        size = storage.nbytes()
        self.seen[key] = weakref.finalize(storage, self.free, key, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def free(self, key: int, size: int) -> None:
        del self.seen[key]
        self.now -= size

    def restart(self) -> int:
        """The peak so far; the next one begins from what is alive now."""
        peak, self.peak = self.peak, self.now
        return peak
