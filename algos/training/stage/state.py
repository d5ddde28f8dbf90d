"""The state of a stage as tensors and plain values, and back.

A state is a dataclass that lists all that a step changes. `pack` walks it field by field, `unpack` walks a new state of
the same stage and makes it equal. A value is plain (numbers, texts, lists, mappings), a tensor, a random generator, a
model, an optimizer, a scheduler, a dataclass of these, or an object with the methods `saved` and `restore`. Anything
else is refused, so that a new field cannot be forgotten.

Not saved is what the stage's inputs give again: a field with the metadata DERIVED, and the frozen weights of a model
that also has trained ones. Weights below 32 bits are saved as their float32 masters, which they are rounded from.
"""

import random
from collections.abc import Iterator
from dataclasses import Field, fields, is_dataclass, replace
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from algos.training.update.optimize import master_of

DERIVED = {"derived": True}  # metadata of a field that the inputs give again
PLAIN = (bool, int, float, str, type(None))


def pack(part: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """The part as a value of JSON; its tensors are added to `tensors`, under names that begin with its own.

    Raises TypeError for a part of an unknown kind.
    """
    if isinstance(part, PLAIN):
        return part
    if isinstance(part, Tensor):
        tensors[name] = part.detach()
        return None
    if isinstance(part, torch.Generator):
        tensors[name] = part.get_state()
        return None
    if isinstance(part, nn.Module):
        tensors |= {f"{name}.{key}": tensor.detach() for key, tensor in weights(part).items()}
        return None
    if isinstance(part, Optimizer):
        state = {str(i): part.state[p] for i, p in enumerate(_parameters(part)) if p in part.state}
        return {"state": pack(state, tensors, name), "groups": [_numbers(group) for group in part.param_groups]}
    if isinstance(part, LRScheduler):
        return part.state_dict()
    if hasattr(part, "saved"):
        return part.saved()
    if is_dataclass(part):
        return {f.name: pack(getattr(part, f.name), tensors, f"{name}.{f.name}") for f in _saved_fields(part)}
    if isinstance(part, dict) and all(isinstance(key, str) for key in part):
        return {key: pack(value, tensors, f"{name}.{key}") for key, value in part.items()}
    if isinstance(part, (list, tuple)):
        return [pack(value, tensors, f"{name}.{i}") for i, value in enumerate(part)]
    raise TypeError(f"{name} is a {type(part).__name__}, which cannot be saved: give it methods saved and restore")


def unpack(part: Any, value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """The part as it was packed. What can change in place (models, generators, dataclasses) does, and is returned."""
    if isinstance(part, torch.Generator):
        part.set_state(tensors[name])
    elif isinstance(part, nn.Module):
        _fill(part, tensors, name)
    elif isinstance(part, Optimizer):
        _fill_optimizer(part, value, tensors, name)
    elif isinstance(part, LRScheduler):
        part.load_state_dict(value)
    elif hasattr(part, "restore"):
        part.restore(value)
    elif is_dataclass(part):
        return _fields(part, value, tensors, name)
    else:
        return _plain(part, value, tensors, name)
    return part


def _fields(part: Any, value: dict, tensors: dict[str, Tensor], name: str) -> Any:
    """A dataclass with its fields as they were; a frozen one is made anew."""
    names = [f.name for f in _saved_fields(part)]
    new = {key: unpack(getattr(part, key), value[key], tensors, f"{name}.{key}") for key in names}
    if part.__dataclass_params__.frozen:
        return replace(part, **new)
    for key, item in new.items():
        setattr(part, key, item)
    return part


def _plain(part: Any, value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """A tensor, a plain value, or a list or mapping of them; part tells a tensor's device, and a tuple from a list."""
    if name in tensors:
        device = part.device if isinstance(part, Tensor) else None
        return tensors[name].to(device=device, copy=True)
    if isinstance(value, dict):
        known = part if isinstance(part, dict) else {}
        return {key: unpack(known.get(key), item, tensors, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        items = list(part) if isinstance(part, (list, tuple)) else []
        items = [
            unpack(items[i] if i < len(items) else None, item, tensors, f"{name}.{i}") for i, item in enumerate(value)
        ]
        return tuple(items) if isinstance(part, tuple) else items
    return value


def weights(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model that a step may change, by name, masters in place of rounded weights; and its buffers."""
    parameters = dict(module.named_parameters())
    frozen = not any(p.requires_grad for p in parameters.values())  # as a whole: a copy that is replaced, not trained
    changing = {name: master_of(p) for name, p in parameters.items() if frozen or p.requires_grad}
    return {**changing, **dict(module.named_buffers())}


@torch.no_grad()
def _fill(module: nn.Module, tensors: dict[str, Tensor], name: str) -> None:
    for key, tensor in weights(module).items():
        _copy(tensor, tensors, f"{name}.{key}")
    for parameter in module.parameters():
        if master_of(parameter) is not parameter:
            parameter.copy_(master_of(parameter))


def _copy(tensor: Tensor, tensors: dict[str, Tensor], name: str) -> None:
    saved = tensors[name]
    if saved.shape != tensor.shape or saved.dtype != tensor.dtype:  # copy_ would broadcast and convert
        raise ValueError(f"{name} is {saved.dtype}{tuple(saved.shape)}, not {tensor.dtype}{tuple(tensor.shape)}")
    tensor.copy_(saved)


def _fill_optimizer(optimizer: Optimizer, value: dict, tensors: dict[str, Tensor], name: str) -> None:
    """Directly: load_state_dict converts the state to the parameters' dtype."""
    for index, parameter in enumerate(_parameters(optimizer)):
        if str(index) in value["state"]:
            entry = _plain({}, value["state"][str(index)], tensors, f"{name}.{index}")
            optimizer.state[parameter] = {
                key: item.to(parameter.device) if isinstance(item, Tensor) else item for key, item in entry.items()
            }
    for group, numbers in zip(optimizer.param_groups, value["groups"], strict=True):
        group.update(numbers)


def _parameters(optimizer: Optimizer) -> Iterator[Tensor]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def _numbers(group: dict) -> dict:
    """What a scheduler changes in a group of parameters, among numbers that it does not."""
    return {key: item for key, item in group.items() if isinstance(item, (int, float))}


def _saved_fields(part: Any) -> list[Field]:
    return [f for f in fields(part) if not f.metadata.get("derived")]


def random_states() -> dict[str, Any]:
    """The state of every global generator: a stage draws its first weights with torch's, a user's reward with any."""
    numpys: Any = numpy.random.get_state(legacy=False)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
        "python": random.getstate(),
        "numpy": {**numpys, "state": {**numpys["state"], "key": numpys["state"]["key"].tolist()}},
    }


def set_random_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None:
        torch.cuda.set_rng_state(states["cuda"])
    random.setstate(states["python"])
    key = numpy.array(states["numpy"]["state"]["key"], dtype=numpy.uint32)
    numpy.random.set_state({**states["numpy"], "state": {**states["numpy"]["state"], "key": key}})
