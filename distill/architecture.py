"""An architecture: which variant stands at which site. Frozen, JSON-compatible, with a content hash."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from transformers import PreTrainedModel

from distill import variants
from distill.errors import DistillError, UnknownSite, UnknownVariant, suggestion
from distill.sites import Site, find_sites


@dataclass(frozen=True)
class Architecture:
    """Mapping of site names to variant names; a site that is absent is "exact".

    `structure` is reserved for changes of shape (layers, heads, widths); no key of it is defined yet, so any
    is an error.
    """

    sites: Mapping[str, str] = field(default_factory=dict)
    structure: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Normalise: "exact" entries are dropped and keys are sorted, so equal architectures compare and hash
        equal."""
        if self.structure:
            raise DistillError(f"structure: no key is supported yet, got {sorted(self.structure)}")
        chosen = {name: variant for name, variant in sorted(self.sites.items()) if variant != "exact"}
        object.__setattr__(self, "sites", MappingProxyType(chosen))
        object.__setattr__(self, "structure", MappingProxyType(dict(self.structure)))

    def __hash__(self) -> int:
        return hash(self.key())

    def __reduce__(self) -> tuple[Any, ...]:
        return (Architecture, (dict(self.sites), dict(self.structure)))

    @classmethod
    def uniform(
        cls, model_or_sites: PreTrainedModel | Iterable[Site], choice: Mapping[str, str]
    ) -> "Architecture":
        """The same variant at all sites of a kind, for example {"softmax": "2quad", "activation": "quad"}."""
        for kind, name in choice.items():
            variants.get(kind, name)
        sites = find_sites(model_or_sites) if isinstance(model_or_sites, PreTrainedModel) else model_or_sites
        return cls({site.name: choice[site.kind] for site in sites if site.kind in choice})

    def variant(self, site: str) -> str:
        """Name of the variant at `site`."""
        return self.sites.get(site, "exact")

    def to_dict(self) -> dict[str, Any]:
        """{"sites": {...}, "structure": {...}}, JSON-compatible."""
        return {"sites": dict(self.sites), "structure": dict(self.structure)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Architecture":
        """Inverse of `to_dict`; an unknown key is a DistillError."""
        for name in data:
            if name not in ("sites", "structure"):
                raise DistillError(
                    f"architecture: unknown key {name!r}{suggestion(name, ('sites', 'structure'))}"
                )
        return cls(data.get("sites", {}), data.get("structure", {}))

    def to_json(self) -> str:
        """JSON text, canonical: equal architectures give equal text."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Architecture":
        """Inverse of `to_json`."""
        return cls.from_dict(json.loads(text))

    def key(self) -> str:
        """Content hash, 16 hexadecimal digits."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def validate(self, model_or_sites: PreTrainedModel | Iterable[Site]) -> None:
        """Check against a model. Raises UnknownSite or UnknownVariant with every fault in one message."""
        if isinstance(model_or_sites, PreTrainedModel):
            # Only kinds with a choice can be named by a non-exact variant.
            model_or_sites = find_sites(model_or_sites)
        known = {site.name: site for site in model_or_sites}
        unknown = [
            f"  unknown site {name!r}{suggestion(name, known)}" for name in self.sites if name not in known
        ]
        wrong = [
            f"  {name}: unknown {known[name].kind} variant {variant!r}"
            f"{suggestion(variant, known[name].variants)}"
            for name, variant in self.sites.items()
            if name in known and variant not in known[name].variants
        ]
        if unknown:
            raise UnknownSite("\n".join(["architecture does not fit the model:", *unknown, *wrong]))
        if wrong:
            raise UnknownVariant("\n".join(["architecture does not fit the model:", *wrong]))
