"""How local steps run: the one place where that is chosen.

A local step of a protocol is a pure function of tensors written in torch, marked with `@kernel`. The torch function is the definition; it
runs on any device. What a call does depends on the device of its tensors:

    meta    the result's shapes come from a memo, filled by running the torch function once on meta tensors for each combination of
            shapes; whoever observes is told of one kernel that reads its inputs and writes its outputs once
    others  the loop of the same name that is provided for this kind of device, where there is one; the torch function otherwise

Kernels take tensors by position and hashable parameters by keyword, return a tensor or a tuple of tensors, and never write to their
inputs. Results on meta are shared between calls: there is nothing in them to write to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache, update_wrapper
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from secure_eval.kernels.meta_tensors import meta, nbytes
from secure_eval.kernels.observation import observer, timed

P = ParamSpec("P")
R = TypeVar("R")
Spec = tuple[Sequence[int], torch.dtype]
Loops = Mapping[str, Callable[..., Any]]
"""Loops by the name of the torch function that they stand for; same arguments, same results."""

_PROVIDED: dict[str, Callable[[], Loops]] = {}


def provide(device: str, loops: Callable[[], Loops]) -> None:
    """Says how to get the loops for a kind of device ("cpu", "cuda"); asked for with the first step that runs there."""
    _PROVIDED[device] = loops


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


class Kernel(Generic[P, R]):
    """A local step, called like the torch function that defines it (kept as `.reference`)."""

    def __init__(self, reference: Callable[P, R]):
        self.reference = reference
        self.name: str = reference.__name__
        update_wrapper(self, reference)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        device = next(a for a in args if isinstance(a, Tensor)).device.type
        if device != "meta":
            function = _loop(device, self.name)
            return timed(self.name, lambda: (function or self.reference)(*args, **kwargs))
        specs = tuple([(a.shape, a.dtype) for a in args])  # type: ignore[attr-defined]
        result, traffic = _on_meta(self.reference, specs, tuple(kwargs.items()))
        told = observer()
        if told is None:
            return result
        told.work(self.name, traffic)
        held: R = told.hold(result)
        return held


@cache
def _loop(device: str, name: str) -> Callable[..., Any] | None:
    return _PROVIDED[device]().get(name) if device in _PROVIDED else None


def kernel(reference: Callable[P, R]) -> Kernel[P, R]:
    """Marks a pure torch function as a local step."""
    return Kernel(reference)


def shapes(of: Callable[..., Sequence[Spec]]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Says of a step's torch function, which takes long on meta tensors, the shapes and types of its results by those of its operands."""

    def mark(reference: Callable[P, R]) -> Callable[P, R]:
        reference.shapes = of  # type: ignore[attr-defined]
        return reference

    return mark
