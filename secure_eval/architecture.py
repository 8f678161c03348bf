"""What of a model follows from its class and configuration alone, and so is architecture: known to all by design.

An exported program says of a tensor whether it is a parameter, a buffer or a constant, not whether its numbers were trained. A tensor is
taken for architecture when the module that has it (or one around it), built again from its class and configuration, has the same numbers
every time: initial weights are drawn anew, trained numbers are not there, frequencies of rotary embeddings and tables of positions come
out equal. A module is built again only where its constructor takes a configuration, or whole numbers, flags and words that the module
still has as attributes of the same name. Whatever cannot be built again is no architecture.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (int, str, type(None), torch.dtype)
_LARGEST = 1 << 28
"""Elements of parameters up to which a module is built again."""

_SMALL_TYPES = (torch.int8, torch.uint8)


class Architecture:
    """Modules of one model, built again on demand, twice each."""

    def __init__(self, model: nn.Module):
        self._modules = dict(model.named_modules())
        self._again: dict[str, tuple[nn.Module, nn.Module] | None] = {}

    def gives(self, path: str, tensor: Tensor) -> bool:
        """Whether class and configuration give the tensor at this path its numbers; of a tensor on the meta device, any numbers."""

        def found(module: nn.Module, rest: str) -> Any:
            value = _at(module, rest)
            return value.to(tensor.dtype) if isinstance(value, Tensor) else None

        def same(a: Any, b: Any) -> bool:
            if (
                not isinstance(a, Tensor)
                or not isinstance(b, Tensor)
                or a.shape != b.shape
                or _is_placeholder(a)
            ):
                return False
            return torch.equal(a, b) and (tensor.is_meta or _equal(a, tensor))

        return self._any(path, found, same)

    def gives_number(self, path: str, number: float) -> bool:
        """Whether class and configuration give the attribute at this path this number."""
        return self._any(path, _at, lambda a, b: a == b == number)

    def _any(
        self, path: str, found: Callable[[nn.Module, str], Any], same: Callable[[Any, Any], bool]
    ) -> bool:
        parts = path.split(".")
        for depth in range(len(parts) - 1, -1, -1):
            again = self._built(".".join(parts[:depth]))
            if again is not None:
                rest = ".".join(parts[depth:])
                a, b = (found(module, rest) for module in again)
                if a is not None:
                    return same(a, b)
        return False

    def _built(self, path: str) -> tuple[nn.Module, nn.Module] | None:
        if path not in self._again:
            self._again[path] = self._build(path)
        return self._again[path]

    def _build(self, path: str) -> tuple[nn.Module, nn.Module] | None:
        module = self._modules.get(path)
        if module is None or sum(p.numel() for p in module.parameters()) > _LARGEST:
            return None
        arguments = _arguments(module, self._config(path))
        if arguments is None:
            return None
        try:
            with _own_numbers(), torch.device("cpu"), torch.no_grad():
                return type(module)(**arguments), type(module)(**arguments)
        except Exception:  # whatever a constructor raises: the module is not taken for architecture
            return None

    def _config(self, path: str) -> Any:
        """The configuration of the module or of the innermost one around it that has one."""
        parts = path.split(".") if path else []
        for depth in range(len(parts), -1, -1):
            config = getattr(self._modules.get(".".join(parts[:depth])), "config", None)
            if config is not None:
                return config
        return None


def _arguments(module: nn.Module, config: Any) -> dict[str, Any] | None:
    """What to build the module with, None where that is not known. Real numbers are left out: they might be trained."""
    arguments: dict[str, Any] = {}
    for name, parameter in inspect.signature(type(module).__init__).parameters.items():
        if name == "self" or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        value = getattr(module, name, inspect.Parameter.empty)
        if name == "config" and config is not None:
            arguments[name] = config
        elif isinstance(value, _PLAIN):
            arguments[name] = value
        elif parameter.default is parameter.empty:
            return None
    return arguments


@contextmanager
def _own_numbers() -> Iterator[None]:
    """Leaves torch's generator as it was: initial weights are drawn inside."""
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)


def _at(module: nn.Module, path: str) -> Any:
    value: Any = module
    for name in path.split("."):
        value = getattr(value, name, None)
    return value


def _is_placeholder(x: Tensor) -> bool:
    """One number all over, where numbers are stored later: that proves nothing. Indices and masks may be such."""
    stored = x.is_floating_point() or x.dtype in _SMALL_TYPES
    return stored and x.numel() > 1 and bool((x == x.reshape(-1)[0]).all())


def _equal(a: Tensor, b: Tensor) -> bool:
    b = b.detach().to(a.device)
    return torch.equal(a, b) or (
        a.is_floating_point() and torch.allclose(a, b, rtol=0.0, atol=0.0, equal_nan=True)
    )
