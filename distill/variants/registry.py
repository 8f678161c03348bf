"""The registry of variants: what may stand at a site, by kind and name.

A *variant* is a plain `torch.nn.Module` in plain torch operations. The same module is trained, captured by
`torch.export` for the secure engine and the cost model, and written by its source into an exported model, so
nothing else may define it. A variant is one file: a module class decorated with `register`, and, where it is
calibrated, a function from a site's statistics to the module's tensors. A new kind needs a `SiteKind` (see
`distill.kinds`) and nothing else.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor, nn

from distill.errors import UnknownVariant, suggestion

Fit = Callable[[Mapping[str, Tensor], Mapping[str, int | float]], dict[str, Tensor]]
ModuleClass = TypeVar("ModuleClass", bound=type[nn.Module])


@dataclass(frozen=True)
class Variant:
    """One choice at a site.

    Attributes:
        kind: "softmax", "activation", "norm", …
        name: unique within the kind; "exact" is the model's own function.
        module: the class to install, or None where the model's own module stays in place.
        options: keyword arguments of `module` that are the same at every site.
        size_argument: keyword of `module` that takes the site's size (heads, channels); None if the module
            has no such tensor.
        fit: (statistics of the site, keyword arguments) -> tensors of the module's state dict; None if not
            calibrated.
    """

    kind: str
    name: str
    module: type[nn.Module] | None
    options: Mapping[str, int | float] = field(default_factory=dict)
    size_argument: str | None = None
    fit: Fit | None = None

    @property
    def needs_calibration(self) -> bool:
        """Whether the variant can only be installed with a `Calibration`."""
        return self.fit is not None

    def arguments(self, size: int) -> dict[str, int | float]:
        """Keyword arguments of `module` at a site of `size` heads or channels; JSON-compatible."""
        arguments = dict(self.options)
        if self.size_argument is not None:
            arguments[self.size_argument] = size
        return arguments


_REGISTRY: dict[str, dict[str, Variant]] = {}


def add(variant: Variant) -> Variant:
    """Register `variant`; a second variant of the same kind and name is an error."""
    of_kind = _REGISTRY.setdefault(variant.kind, {})
    if variant.name in of_kind:
        raise UnknownVariant(f"{variant.kind} variant {variant.name!r} is registered twice")
    of_kind[variant.name] = variant
    return variant


def register(
    kind: str, name: str, *, size_argument: str | None = None, fit: Fit | None = None, **options: int | float
) -> Callable[[ModuleClass], ModuleClass]:
    """Class decorator: make the module class available as variant `name` of `kind`. May be stacked with other
    options."""

    def decorate(module: ModuleClass) -> ModuleClass:
        add(Variant(kind, name, module, options, size_argument, fit))
        return module

    return decorate


def kinds() -> tuple[str, ...]:
    """Registered kinds, sorted."""
    return tuple(sorted(_REGISTRY))


def names(kind: str) -> tuple[str, ...]:
    """Names of the variants of `kind`, "exact" first, the rest sorted. Raises UnknownVariant for an unknown
    kind."""
    if kind not in _REGISTRY:
        raise UnknownVariant(f"unknown variant kind {kind!r}{suggestion(kind, _REGISTRY)}")
    return tuple(sorted(_REGISTRY[kind], key=lambda name: (name != "exact", len(name), name)))


def get(kind: str, name: str) -> Variant:
    """The variant `name` of `kind`. Raises UnknownVariant, with the closest name, if there is none."""
    known = names(kind)
    if name not in known:
        raise UnknownVariant(f"unknown {kind} variant {name!r}{suggestion(name, known)}")
    return _REGISTRY[kind][name]
