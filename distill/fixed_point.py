"""What fixed point can hold of the values inside variants, and what they meet: for fitting, searching and training.

The secure engine multiplies numbers of 16 fraction bits in 64 bits and truncates afterwards, so a product has to stay
below 2^30 in magnitude; and it divides by numbers of a stated range. What lies beyond comes out wrong without a sign of
it. A variant's own products and divisors are watched while its forward runs, whatever its code, so nothing here names a
variant.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

PRODUCTS = frozenset(
    {"mul", "__mul__", "__rmul__", "multiply", "square", "pow", "__pow__", "matmul", "__matmul__"}
)
QUOTIENTS = frozenset({"div", "true_divide", "divide", "__truediv__"})
MOST_BITS = 62.0
"""Bits to spare of a site whose variant forms no product: the width of the engine's ring, so that the figure is a number."""


@dataclass(frozen=True)
class Limits:
    """What an engine holds.

    Attributes:
        product: a product's magnitude has to stay below it.
        divisor: a divisor has to lie between these two.
        margin_bits: factor, in bits, that fits, the search and training keep away from each limit: other inputs than
            the calibration's, and other layers before a site, have larger values.
    """

    product: float = 2.0**30
    divisor: tuple[float, float] = (2.0**-6, 2.0**14)
    margin_bits: float = 2.0


ENGINE = Limits()
"""The engine's promise at 16 fraction bits; a test holds it against what secure_eval states."""


@dataclass
class Met:
    """Extremes that the variant of one site met: the largest product, the smallest and the largest divisor."""

    product: float = 0.0
    least_divisor: float = math.inf
    largest_divisor: float = 0.0

    def join(self, other: "Met") -> None:
        """Take in what was met elsewhere."""
        self.product = max(self.product, other.product)
        self.least_divisor = min(self.least_divisor, other.least_divisor)
        self.largest_divisor = max(self.largest_divisor, other.largest_divisor)

    def spare_bits(self, limits: Limits = ENGINE) -> float:
        """Bits between what was met and the nearest limit, at most MOST_BITS; negative beyond it, -MOST_BITS for no number."""
        low, high = limits.divisor
        ratios = [limits.product / self.product] if self.product else []
        if self.largest_divisor or self.least_divisor < math.inf:
            ratios += [high / max(self.largest_divisor, 1e-300), self.least_divisor / low]
        bits = [math.log2(ratio) if ratio > 0 else -math.inf for ratio in ratios]
        if any(math.isnan(ratio) for ratio in ratios):
            return -MOST_BITS
        return max(-MOST_BITS, min([MOST_BITS, *bits]))


class _Watching(TorchFunctionMode):
    """Hands every product and every divisor to `see(kind, tensor)`, kind being "product" or "divisor"."""

    def __init__(self, see: Any) -> None:
        super().__init__()
        self._see = see

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name in PRODUCTS and isinstance(result, Tensor) and result.is_floating_point():
            with torch._C.DisableTorchFunction():
                self._see("product", result)
        elif name in QUOTIENTS and len(args) > 1 and isinstance(args[1], Tensor):
            with torch._C.DisableTorchFunction():
                self._see("divisor", args[1])
        return result


@contextmanager
def watched(modules: Mapping[str, nn.Module], see: Any) -> Iterator[None]:
    """While inside, `see(site, kind, tensor)` is called with every product and divisor of the modules' forwards.

    Works with gradients: the tensors are those of the graph. Restores the modules however it is left.
    """
    open_modes: list[_Watching] = []

    def begin(site: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            mode = _Watching(lambda kind, tensor: see(site, kind, tensor))
            mode.__enter__()
            open_modes.append(mode)

        return hook

    def end(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        open_modes.pop().__exit__(None, None, None)

    handles = []
    for site, module in modules.items():
        handles += [
            module.register_forward_pre_hook(begin(site)),
            module.register_forward_hook(end, always_call=True),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def note(met: Met, kind: str, tensor: Tensor) -> None:
    """Take the extremes of a product or divisor into `met`; a value that is no number counts as infinite."""
    if not tensor.numel():
        return
    if kind == "product":
        met.product = max(met.product, float(torch.nan_to_num(tensor.detach().abs().amax(), nan=math.inf)))
        return
    low, high = torch.nan_to_num(torch.stack(torch.aminmax(tensor.detach())).double(), nan=math.inf).tolist()
    met.least_divisor = min(met.least_divisor, low)
    met.largest_divisor = max(met.largest_divisor, high)


def met_by(module: nn.Module, inputs: Iterable[tuple[Tensor | None, ...]]) -> Met:
    """What one module's products and divisors meet on some inputs of its forward."""
    met = Met()
    with torch.no_grad(), watched({"": module}, lambda site, kind, tensor: note(met, kind, tensor)):
        for given in inputs:
            module(*given)
    return met


class RangePenalty:
    """What to add to a training loss so that the variants' values stay where fixed point holds them.

    Use it around a forward pass that has gradients, then read `value`; `range_term` makes it a term of a training's loss.

    It is the sum over products and divisors of the square of the bits by which their extremes lie beyond a limit less
    its margin: zero, without gradient, while everything is inside.
    """

    def __init__(self, modules: Mapping[str, nn.Module], limits: Limits = ENGINE) -> None:
        """modules: site -> variant, as `variant_modules` gives them."""
        self.modules, self.limits = dict(modules), limits
        self._terms: list[Tensor] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Collect the terms of one forward pass; those of an earlier one are forgotten."""
        self._terms = []
        with watched(self.modules, self._see):
            yield

    def _see(self, site: str, kind: str, tensor: Tensor) -> None:
        margin = 2.0**self.limits.margin_bits
        if kind == "product":
            self._beyond(tensor.abs().amax() / (self.limits.product / margin))
            return
        low, high = self.limits.divisor
        self._beyond(tensor.amax() / (high / margin))
        self._beyond(low * margin / tensor.amin().clamp_min(1e-30))

    def _beyond(self, ratio: Tensor) -> None:
        self._terms.append(torch.log2(ratio.float().clamp_min(1.0)).square())

    def value(self) -> Tensor:
        """The penalty of the last forward pass, a scalar; 0 where no variant forms a product."""
        return torch.stack(self._terms).sum() if self._terms else torch.zeros(())


def variant_modules(model: nn.Module) -> dict[str, nn.Module]:
    """site -> module of every variant that the model's config lists (see `distill.surgery`)."""
    carried = getattr(model.config, "sordino", None)
    return {} if carried is None else {name: model.get_submodule(name) for name in carried["modules"]}


def range_term(
    model: nn.Module, weight: float, limits: Limits = ENGINE
) -> Callable[[], AbstractContextManager[Callable[[], Tensor]]]:
    """`weight` times the range penalty of a student's variants, as a further term of `objectives.Objectives`."""

    @contextmanager
    def entered() -> Iterator[Callable[[], Tensor]]:
        penalty = RangePenalty(variant_modules(model), limits)
        with penalty.watching():
            yield lambda: weight * penalty.value()

    return entered
