"""Runs the project's own code on tensors without memory: shapes, dtypes and lifetimes, but no numbers.

Under Weightless every floating-point tensor is a FakeTensor: a model of 7 B parameters is built, trained and sampled
from in seconds and in no memory. Integers and booleans are real, so that token ids, masks, lengths and index tensors
steer the code as they would in a run; those that depend on floating-point numbers, which do not exist, are 0 and True.
A floating-point number that the code reads out is 1.
"""

from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

aten = torch.ops.aten
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._unsafe_index.Tensor}
GROUPED = aten._grouped_mm.default  # of experts; its rule for shapes knows bfloat16 alone
FALSE = {aten.isnan.default, aten.isinf.default}


class Weightless(TorchDispatchMode):
    """with Weightless(): ... Of a result only the shape has a meaning."""

    def __init__(self):
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.apply = patch.object(torch.nn.Module, "_apply", _apply)

    def __enter__(self):
        self.apply.start()
        return super().__enter__()

    def __exit__(self, *error):
        self.apply.stop()
        return super().__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.prim.device.default:  # more than half of all calls
            return args[0].fake_device
        kwargs = kwargs or {}
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        if not any(isinstance(x, FakeTensor) for x in tensors):
            if tensors or not _makes_floats(function, kwargs):
                return function(*args, **kwargs)
        elif function is aten._local_scalar_dense.default:
            return 1.0
        elif function in (aten.allclose.default, aten.equal.default):
            return function is aten.allclose.default  # what should agree does; no two models are the same
        if function in INDEXING:  # a mask's number of places is known, as masks are real
            args = (args[0], _places(args[1]), *args[2:])
        with self.fake:
            result = _grouped(*args, **kwargs) if function is GROUPED else function(*args, **kwargs)
        if function._schema.is_mutable:
            return _mutated(function, args, kwargs, result)
        if isinstance(result, (tuple, list)):
            return type(result)(_real(function, x) for x in result)
        return _real(function, result)


def _apply(module, function, recurse=True, made=None):
    """nn.Module._apply, behind .to(): PyTorch's own swaps the tensors' insides, which a FakeTensor refuses."""
    made = {} if made is None else made  # by id: tied weights stay tied
    for child in module.children():
        _apply(child, function, recurse, made)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            if id(parameter) not in made:
                with torch.no_grad():
                    applied = function(parameter)
                same = applied.dtype == parameter.dtype and applied.device == parameter.device
                made[id(parameter)] = parameter if same else torch.nn.Parameter(applied, parameter.requires_grad)
            module._parameters[name] = made[id(parameter)]
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = function(buffer)
    return module


def _makes_floats(function, kwargs) -> bool:
    dtype = kwargs.get("dtype")
    if dtype is not None:
        return dtype.is_floating_point
    return function.overloadpacket not in (aten.arange, aten.randperm, aten.randint, aten.tensor)


def _grouped(left: Tensor, right: Tensor, offsets: Tensor | None = None, *_) -> Tensor:
    """The product of matrices whose rows, columns or inner numbers belong to groups, or of one matrix a group."""
    groups: tuple[int, ...] = (
        (len(offsets),) if offsets is not None and left.dim() == right.dim() == 2 else left.shape[:-2]
    )
    groups = () if left.dim() + right.dim() == 5 else groups  # the groups lie end to end in the matrix
    return left.new_empty(*groups, left.shape[-2], right.shape[-1])


def _places(indices) -> list:
    """Boolean masks among the indices as the index tensors that they stand for."""
    out: list[Tensor] = []
    for index in indices:
        if isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) and not isinstance(index, FakeTensor):
            out += index.nonzero().unbind(1)
        else:
            out.append(index)
    return out


def _mutated(function, args, kwargs, result):
    """In-place operations return the very tensor that they were given."""
    if isinstance(result, Tensor):
        if "out" in kwargs:
            return kwargs["out"]
        if isinstance(args[0], Tensor) and not isinstance(args[0], FakeTensor):
            return args[0]
    return result


def _real(function, value):
    """Integers and booleans made from floating-point numbers that do not exist."""
    if not isinstance(value, FakeTensor) or value.is_floating_point() or value.is_complex():
        return value
    fill = value.dtype == torch.bool and function not in FALSE
    return torch.full(value.shape, fill, dtype=value.dtype, device=value.fake_device)


def tangible(tensor: Tensor) -> Tensor:
    """Zeros with memory in a weightless tensor's place: loops over many small ones then run at full speed."""
    if not isinstance(tensor, FakeTensor):
        return tensor
    return torch.zeros(tensor.shape, dtype=torch.int64).to(tensor.dtype)
