"""The bytes in memory at every moment, counted storage by storage: by category, by model, and at its peak.

LiveTensors watches every operation. A storage counts once, from its first tensor to its end: views and in-place
operations add nothing, and a freed storage is gone at once. The same count runs on the CPU, on CUDA and on tensors that
have no memory at all (weightless.py): the prediction and the measurement are then one piece of code.
Not seen: the memory that a kernel allocates for itself, and the allocator's rounding; on CUDA the allocator's own peak
stands beside the count.
"""

import weakref
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

CATEGORIES = (
    "weights",
    "gradients",
    "optimizer",  # moments and the like
    "master",  # float32 copies of weights in fewer bits
    "activations",  # made by a forward pass
    "backward",  # made by a backward pass: gradients of activations, and those not yet added to the others
    "logits",  # anything with the vocabulary as its last dimension, its gradients too
    "kv_cache",
    "workspace",  # made by an optimizer step and gone after it
    "other",  # token ids, masks, rewards
)
FIRST_GRADIENTS = 4  # of a backward pass, and fewer than a layer has
COMPONENTS = ("policy", "critic", "reference", "reward_model", "")  # "": no model's


Place = tuple[str, str]  # (component, category)


@dataclass
class Peak:
    """The fullest moment of a phase."""

    bytes: int = 0
    places: Counter = field(default_factory=Counter)  # Place -> bytes at that moment
    start_bytes: int = 0  # what the phase began with
    cuda_bytes: int | None = None  # of torch's allocator on CUDA, at a moment of its own
    allocator_bytes: int | None = None  # the same on the CPU, where someone has asked its allocator
    moments: dict[str, tuple[int, Counter]] = field(default_factory=dict)  # LiveTensors.moment -> bytes and places

    def by(self, which: str) -> dict[str, int]:
        """Bytes at the peak by "component" or by "category"."""
        total: Counter = Counter()
        for (component, category), size in self.places.items():
            total[component if which == "component" else category] += size
        return dict(total)


def fuller(first: Peak, second: Peak) -> Peak:
    """The fuller of two runs of one phase, moment by moment."""
    moments = {
        name: max((p.moments[name] for p in (first, second) if name in p.moments), key=lambda moment: moment[0])
        for name in first.moments | second.moments
    }
    return replace(max(first, second, key=lambda peak: peak.bytes), moments=moments)


def _going_back() -> bool:
    return torch._C._current_graph_task_id() != -1


@dataclass
class _Live:
    size: int
    place: Place
    reference: weakref.ref | None = None


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of all live storages while it is active.

    with LiveTensors(vocabulary=V) as live:
        live.add_model("policy", model, optimizer)
        with live.phase("update"):
            ...
    live.peaks["update"].by("category")

    A new tensor belongs to a model if an input of its operation does: to the model of the first such input. Tensors
    older than the mode count once they are added, or once an operation returns a view of them.
    snapshot: on CUDA, the file for torch's memory history, to be opened at pytorch.org/memory_viz.
    """

    def __init__(self, vocabulary: int = 0, snapshot: str | None = None):
        super().__init__()
        if snapshot is not None and not torch.cuda.is_available():
            raise ValueError(f"snapshot {snapshot!r} needs CUDA, which this machine does not have; leave it out")
        self.vocabulary, self.snapshot = vocabulary, snapshot
        self.live: dict[int, _Live] = {}  # by the storage's address
        self.places: Counter = Counter()
        self.bytes = 0
        self.peaks: dict[str, Peak] = {}
        self._peak: Peak | None = None
        self.part = ""  # of the work, whose moments are kept apart from those of the others
        self._in_step = False
        self._gradients = 0  # that this backward pass has come to
        self._making: str | None = None
        self._hooks: list = []
        self._heads: set[tuple[int, ...]] = set()  # shapes of matrices with the vocabulary in them that are weights

    # what there is

    def add(self, component: str, category: str, *tensors: Tensor | None) -> None:
        """Count these tensors, or move them, if they are counted already, to another place."""
        for tensor in tensors:
            if tensor is not None:
                self._count(tensor, (component, category), move=True)

    def add_model(self, component: str, model, optimizer=None) -> None:
        """Count a model's weights and buffers, and its gradients and optimizer state whenever they come to be.

        Parameters of the optimizer that are not the model's count as its master copy. Weights that another model has
        shared with it stay that model's.
        """
        owned = set()

        def gradient(parameter: Tensor) -> None:
            self._gradients += 1
            self.add(component, "gradients", parameter.grad)
            if hasattr(parameter, "master"):  # the gradient has gone to the master's
                self.add(component, "gradients", parameter.master.grad)

        for tensor in [*model.parameters(), *model.buffers()]:
            owned.add(id(tensor))
            known = self.live.get(tensor.untyped_storage()._cdata)
            if known is None or known.place[1] != "weights":
                self.add(component, "weights", tensor)
            if tensor.dim() == 2 and self.vocabulary in tensor.shape:
                self._heads |= {tuple(tensor.shape), tuple(tensor.shape[::-1])}
            if tensor.requires_grad:
                self.add(component, "gradients", tensor.grad)
                self._hooks.append(tensor.register_post_accumulate_grad_hook(gradient))
        if optimizer is None:
            return

        def state(*_) -> None:
            self._in_step = False
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    if id(parameter) not in owned:
                        self.add(component, "master", parameter)
                        self.add(component, "gradients", parameter.grad)
            for entry in optimizer.state.values():
                self.add(component, "optimizer", *(x for x in entry.values() if isinstance(x, Tensor)))

        def stepping(*_) -> None:
            self._in_step = True

        state()
        self._hooks += [optimizer.register_step_pre_hook(stepping), optimizer.register_step_post_hook(state)]

    def add_cache(self, component: str, cache) -> None:
        """Move a key-value cache's tensors, whatever object holds them, to kv_cache."""
        seen: set[int] = set()

        def walk(value) -> None:
            if id(value) in seen:
                return
            seen.add(id(value))
            if isinstance(value, Tensor):
                self.add(component, "kv_cache", value)
            elif isinstance(value, (list, tuple)):
                for item in value:
                    walk(item)
            elif isinstance(value, dict):
                walk(list(value.values()))
            elif type(value).__module__.startswith(("transformers", "algos")) and hasattr(value, "__dict__"):
                walk(list(vars(value).values()))

        walk(cache)

    # what happens

    @contextmanager
    def making(self, category: str):
        """Every floating-point tensor made inside is of this category."""
        self._making = category
        try:
            yield
        finally:
            self._making = None

    @contextmanager
    def phase(self, name: str):
        """Everything inside belongs to the phase; of a repeated phase the fullest moment of all is kept."""
        if self._peak is not None:
            raise ValueError(f"phase {name!r} begins inside another one; phases follow one another")
        on_cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
        if on_cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        peak = self._peak = Peak(self.bytes, +self.places, self.bytes)
        peak.moments[self.moment] = peak.bytes, peak.places
        try:
            yield peak
        finally:
            self._peak = None
            if on_cuda:
                torch.cuda.synchronize()
                peak.cuda_bytes = torch.cuda.max_memory_allocated()
            self.peaks[name] = fuller(self.peaks[name], peak) if name in self.peaks else peak

    def __enter__(self):
        if self.snapshot is not None:
            torch.cuda.memory._record_memory_history(max_entries=1_000_000)
        return super().__enter__()

    def __exit__(self, *error):
        result = super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if self.snapshot is not None:
            torch.cuda.memory._dump_snapshot(self.snapshot)
            torch.cuda.memory._record_memory_history(enabled=None)
        return result

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.prim.device.default:  # more than half of all calls, and it makes nothing
            return args[0].fake_device
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self._made(result, args)
        elif isinstance(result, (tuple, list)):
            for tensor in result:
                if isinstance(tensor, Tensor):
                    self._made(tensor, args)
        return result

    def _made(self, tensor: Tensor, inputs) -> None:
        known = self.live.get(tensor.untyped_storage()._cdata)
        if known is None or known.size != tensor.untyped_storage().nbytes():
            self._count(tensor, known.place if known else (self._component(inputs), self._category(tensor)))

    def _component(self, inputs) -> str:
        for value in inputs:
            for tensor in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(tensor, Tensor):
                    known = self.live.get(tensor.untyped_storage()._cdata)
                    if known is not None and known.place[0]:
                        return known.place[0]
        return ""

    def _category(self, tensor: Tensor) -> str:
        if self._in_step:
            return "workspace"
        if not tensor.is_floating_point():
            return "other"
        if self._making is not None:
            return self._making
        if tensor.dim() > 1 and tensor.shape[-1] == self.vocabulary and tuple(tensor.shape) not in self._heads:
            return "logits"
        return "backward" if _going_back() else "activations"

    @property
    def moment(self) -> str:
        """The part, and what happens: an optimizer steps, autograd goes back, or all the rest.

        A backward pass has a moment for each of its first gradients, which are those of the last layer: what is alive
        then grows with the activations of all layers, and what is alive at the end with their gradients.
        """
        if _going_back() and not self._in_step:
            return f"{self.part}backward {min(self._gradients, FIRST_GRADIENTS)}"
        self._gradients = 0
        return self.part + ("step" if self._in_step else "forward")

    def _count(self, tensor: Tensor, place: Place, move: bool = False) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        known = self.live.get(key)
        if known is None:
            known = self.live[key] = _Live(0, place)
            known.reference = weakref.ref(storage, lambda _: self._gone(key))
        elif move and known.place != place:
            self.places[known.place] -= known.size
            self.places[place] += known.size
            known.place = place
        self.places[known.place] += size - known.size
        self.bytes += size - known.size
        known.size = size
        if self._peak is not None:
            moment = self.moment
            if moment not in self._peak.moments or self.bytes > self._peak.moments[moment][0]:
                self._peak.moments[moment] = self.bytes, +self.places
            if self.bytes > self._peak.bytes:
                self._peak.bytes, self._peak.places = self._peak.moments[moment]

    def _gone(self, key: int) -> None:
        known = self.live.pop(key)
        self.places[known.place] -= known.size
        self.bytes -= known.size
