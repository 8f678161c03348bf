"""Kinds of site: how each is recognised in a model, how its size is read, and what calibration observes
there.

A kind works on a model prepared by `attention.attach`, where every site is a module; so recognising is a
predicate on modules, and sizes and statistics come from forward hooks. A new kind is one `SiteKind` added to
`KINDS`, and variants registered for it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from transformers.activations import ACT2CLS

from distill import variants
from distill.observers import ActivationObserver, NormObserver, Observer, SoftmaxObserver


@dataclass(frozen=True)
class SiteKind:
    """One kind of replaceable function.

    Attributes:
        name: also the kind of the variants that may stand there.
        matches: (path of the module, module) -> whether the module is a site.
        size: first input of the module's forward -> number of heads or channels.
        observer: size -> a fresh collector of calibration statistics.
    """

    name: str
    matches: Callable[[str, nn.Module], bool]
    size: Callable[[Tensor], int]
    observer: Callable[[int], Observer]


def layer_of(path: str) -> int | None:
    """Number of the layer a module path lies in: its first numeric component, None outside numbered
    layers."""
    return next((int(part) for part in path.split(".") if part.isdigit()), None)


def _is_variant(kind: str, module: nn.Module) -> bool:
    registered = (variants.get(kind, name).module for name in variants.names(kind))
    return type(module) in [cls for cls in registered if cls is not None]


_ACTIVATIONS = frozenset(entry[0] if isinstance(entry, tuple) else entry for entry in ACT2CLS.values())


def _is_softmax(path: str, module: nn.Module) -> bool:
    return _is_variant("softmax", module)


def _is_activation(path: str, module: nn.Module) -> bool:
    # Poolers and heads have activations as well, on one token; only those of the numbered layers dominate the
    # cost.
    return layer_of(path) is not None and (type(module) in _ACTIVATIONS or _is_variant("activation", module))


def _is_norm(path: str, module: nn.Module) -> bool:
    named = type(module).__name__.endswith(("LayerNorm", "RMSNorm"))
    return layer_of(path) is not None and (named or _is_variant("norm", module))


KINDS: Mapping[str, SiteKind] = {
    kind.name: kind
    for kind in (
        SiteKind("softmax", _is_softmax, lambda scores: scores.shape[1], SoftmaxObserver),
        SiteKind("activation", _is_activation, lambda inputs: inputs.shape[-1], ActivationObserver),
        SiteKind("norm", _is_norm, lambda inputs: inputs.shape[-1], NormObserver),
    )
}
