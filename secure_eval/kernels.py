"""How local steps run: the one place where that is chosen.

A local step of a protocol is a pure function of tensors written in torch, marked with `@kernel`. The torch
function is the definition; it runs on any device. What a call does depends on the device of its tensors:

    meta    the result's shapes come from a memo, filled by running the torch function once on meta tensors
            for each combination of shapes; whoever observes is told of one kernel that reads its inputs and
            writes its outputs once
    cpu     the compiled loop of the same name in `native.py` where there is one, the torch function otherwise
    others  the torch function

Kernels take tensors by position and hashable parameters by keyword, return a tensor or a tuple of tensors,
and never write to their inputs. Results on meta are shared between calls: there is nothing in them to write
to.

Torch itself takes up to a millisecond to work out the shape of one operation on meta tensors. `MetaMemo`
remembers those as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, lru_cache, update_wrapper
from typing import Any, Generic, ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from secure_eval.measurement import GENERATOR

P = ParamSpec("P")
R = TypeVar("R")
Spec = tuple[Sequence[int], torch.dtype]


class Observer(Protocol):
    """Who is told of local work."""

    def work(self, kind: str, nbytes: int) -> None:
        """One fused step or one expansion of a seed that would read and write so many bytes."""

    def hold(self, result: Any) -> Any:
        """Takes the tensors of a result, which are shared between calls, and returns the ones to hand out."""


_observer: ContextVar[Observer | None] = ContextVar("observer", default=None)


@contextmanager
def observing(observer: Observer) -> Iterator[None]:
    """Inside, every kernel on meta tensors reports to `observer`, and so does every tensor that arrives or is expanded from a seed."""
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


Stopwatch = Callable[[str, Callable[[], Any]], Any]

_stopwatch: ContextVar[Stopwatch | None] = ContextVar("stopwatch", default=None)


@contextmanager
def timing(stopwatch: Stopwatch) -> Iterator[None]:
    """Inside, kernels and expansions of seeds on real tensors run as `stopwatch(kind, run)`, which returns what `run()` does."""
    token = _stopwatch.set(stopwatch)
    try:
        yield
    finally:
        _stopwatch.reset(token)


def timed(kind: str, run: Callable[[], R]) -> R:
    """Runs one piece of work, under the stopwatch if there is one."""
    stopwatch = _stopwatch.get()
    if stopwatch is None:
        return run()
    with _disable_current_modes():
        found: R = stopwatch(kind, run)
    return found


@lru_cache(maxsize=1 << 14)
def meta(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The meta tensor of a shape: always the same one."""
    with _disable_current_modes(), torch.inference_mode(False):
        return torch.empty(shape, dtype=dtype, device="meta")


def allocated(shape: tuple[int, ...], dtype: torch.dtype, generator: bool = False) -> Tensor:
    """A meta tensor that memory is needed for, and with `generator` the work of expanding it from a seed."""
    tensor, observer = meta(shape, dtype), _observer.get()
    if observer is None:
        return tensor
    if generator:
        observer.work(GENERATOR, tensor.numel() * tensor.element_size())
    held: Tensor = observer.hold(tensor)
    return held


@lru_cache(maxsize=1 << 14)
def _on_meta(
    function: Callable[..., Any], specs: tuple[Spec, ...], parameters: tuple[tuple[str, Any], ...]
) -> tuple[Any, int]:
    """The result on meta tensors, and the bytes of inputs and outputs."""
    tensors = [meta(tuple(shape), dtype) for shape, dtype in specs]
    shapes = getattr(function, "shapes", None)
    if shapes is not None:
        found = tuple([meta(tuple(shape), dtype) for shape, dtype in shapes(*specs, **dict(parameters))])
        result = found if len(found) > 1 else found[0]
    else:
        with _disable_current_modes(), torch.inference_mode(False):
            result = function(*tensors, **dict(parameters))
    outputs = result if isinstance(result, tuple) else (result,)
    return result, nbytes([*tensors, *outputs])


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


class Kernel(Generic[P, R]):
    """A local step, called like the torch function that defines it (kept as `.reference`)."""

    def __init__(self, reference: Callable[P, R]):
        self.reference = reference
        self.name: str = reference.__name__
        update_wrapper(self, reference)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        device = next(a for a in args if isinstance(a, Tensor)).device.type
        if device != "meta":
            function = _native(self.name) if device == "cpu" else None
            return timed(self.name, lambda: (function or self.reference)(*args, **kwargs))
        specs = tuple([(a.shape, a.dtype) for a in args])  # type: ignore[attr-defined]
        result, traffic = _on_meta(self.reference, specs, tuple(kwargs.items()))
        observer = _observer.get()
        if observer is None:
            return result
        observer.work(self.name, traffic)
        held: R = observer.hold(result)
        return held


@cache
def _native(name: str) -> Callable[..., Any] | None:
    """The compiled loop of this name. The compiler is imported with the first kernel that runs on a CPU, not
    before."""
    from secure_eval import native

    return native.LOOPS.get(name)


def kernel(reference: Callable[P, R]) -> Kernel[P, R]:
    """Marks a pure torch function as a local step."""
    return Kernel(reference)


def shapes(of: Callable[..., Sequence[Spec]]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Says of a step's torch function, which takes long on meta tensors, the shapes and types of its results by those of its operands."""

    def mark(reference: Callable[P, R]) -> Callable[P, R]:
        reference.shapes = of  # type: ignore[attr-defined]
        return reference

    return mark
