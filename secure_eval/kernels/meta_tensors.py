"""Tensors without values, as counting runs compute with: results by shape, remembered.

Torch takes up to a millisecond to work out the shape of one operation on meta tensors. `MetaMemo` remembers it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from secure_eval.kernels.observation import observer
from secure_eval.measurement import GENERATOR


@lru_cache(maxsize=1 << 14)
def meta(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The meta tensor of a shape: always the same one."""
    with _disable_current_modes(), torch.inference_mode(False):
        return torch.empty(shape, dtype=dtype, device="meta")


def allocated(shape: tuple[int, ...], dtype: torch.dtype, generator: bool = False) -> Tensor:
    """A meta tensor that memory is needed for, and with `generator` the work of expanding it from a seed."""
    tensor, told = meta(shape, dtype), observer()
    if told is None:
        return tensor
    if generator:
        told.work(GENERATOR, tensor.numel() * tensor.element_size())
    held: Tensor = told.hold(tensor)
    return held


class _Call:
    """A torch operation and its arguments; equal to another one where results on meta tensors are the
    same."""

    __slots__ = ("func", "args", "kwargs", "key", "tensors")

    def __init__(self, func: Any, args: Any, kwargs: Any):
        self.func, self.args, self.kwargs = func, args, kwargs
        self.tensors: list[Tensor] = []
        self.key = (func, self._described(args), self._described(tuple(kwargs.items())) if kwargs else None)

    def _described(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            self.tensors.append(value)
            return value.shape, value.stride(), value.dtype
        if isinstance(value, (tuple, list)):
            return tuple([self._described(v) for v in value])
        return type(value), value

    def forget(self) -> None:
        """Lets go of the operands: a call that is remembered is not to keep them."""
        self.args, self.kwargs, self.tensors = (), {}, []

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Call) and self.key == other.key


@lru_cache(maxsize=1 << 14)
def _result(call: _Call) -> Any:
    with torch.inference_mode(False):
        result = call.func(*call.args, **call.kwargs)
    return result


_harmless: set[_Call] = set()
"""Calls that are known to write to an operand, return it and leave its shape as it was."""


def _written(call: _Call) -> Any:
    target = call.kwargs.get("out", call.args[0] if call.args else None)
    if call in _harmless:
        return target
    layout = (target.shape, target.stride()) if isinstance(target, Tensor) else None
    result = call.func(*call.args, **call.kwargs)
    if result is target and layout == (target.shape, target.stride()) and len(_harmless) < 1 << 14:
        _harmless.add(call)
    return result


def fresh(result: Any) -> Any:
    """The remembered tensors as new objects: torch changes the shape of some in place (squeeze_, after a vector times a matrix)."""
    if isinstance(result, Tensor):
        return result.detach()
    return type(result)(map(fresh, result)) if type(result) in (tuple, list) else result


class MetaMemo(TorchDispatchMode):
    """Inside, a torch operation on meta tensors is worked out once for its operands' shapes, strides, types
    and parameters.

    Not views, which torch ties to the very tensor that they view. An operation that writes to an operand gives
    back that operand, once it is known not to change the operand's shape.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing here is compiled, and torch's guard against that takes longer than most calls

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not func.is_view:
            call = _Call(func, args, kwargs)
            tensors = call.tensors
            if tensors and all([t.is_meta for t in tensors]):
                result = _written(call) if func._schema.is_mutable else fresh(_result(call))
                call.forget()
                return self.seen(func, tensors, result)
        result = func(*args, **kwargs)
        return self.seen(func, list(tensors_in([*args, *kwargs.values()])), result)

    def seen(self, func: Any, inputs: list[Tensor], result: Any) -> Any:
        """Called for each operation; returns its result."""
        return result


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in an operation's arguments or result."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for v in value:
            yield from tensors_in(v)


def nbytes(tensors: Sequence[Tensor]) -> int:
    """Bytes of tensors together."""
    return sum([t.numel() * t.element_size() for t in tensors])
