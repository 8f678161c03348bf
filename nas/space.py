"""What the search may choose from: for each kind of site, or for single sites, the variants that are
allowed.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from distill import Architecture, Site
from distill import variants as registry
from distill.errors import suggestion

EXACT = "exact"

#: Published recipes as data: the variant that each puts at every site of a kind; kinds not named stay exact.
#: MPCFormer: Li et al., ICLR 2023, section 4 (Quad for GELU, 2Quad for softmax).
BASELINES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "teacher": MappingProxyType({}),
        "mpcformer": MappingProxyType({"softmax": "2quad", "activation": "quad"}),
    }
)


class SearchSpaceError(ValueError):
    """A search space that names what does not exist; the message says where, and what is allowed."""


@dataclass(frozen=True)
class SearchSpace:
    """The variants allowed at each kind of site, and narrower lists for single sites.

    kinds: kind -> variants, e.g. ``{"softmax": ["exact", "2quad"], "activation": ["exact",
        "quad_channel"]}``. Kinds of the model that are not named stay exact.
    sites: site name or pattern (``*`` and ``?`` as in file names) -> variants, which replace the kind's
        list there, e.g. ``{"*.layer.0.*.softmax": ["exact"]}``. Where several patterns match, the last one
        counts.

    Raises SearchSpaceError at once for an unknown kind or variant; `options` raises it for what only a
    model can
    tell: a kind that the model lacks, a pattern that matches nothing, a variant that a site cannot take.
    """

    kinds: Mapping[str, Sequence[str]]
    sites: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = registry.kinds()
        if not self.kinds:
            raise SearchSpaceError(f"the search space names no kind of site; known kinds: {', '.join(known)}")
        for kind, allowed in self.kinds.items():
            if kind not in known:
                raise SearchSpaceError(f"unknown kind of site {kind!r}{suggestion(kind, known)}")
            self._check_variants(kind, kind, allowed)
        object.__setattr__(self, "kinds", MappingProxyType({k: tuple(v) for k, v in self.kinds.items()}))
        object.__setattr__(self, "sites", MappingProxyType({k: tuple(v) for k, v in self.sites.items()}))

    @staticmethod
    def _check_variants(place: str, kind: str, allowed: Sequence[str]) -> None:
        if isinstance(allowed, str) or not allowed:
            raise SearchSpaceError(f"{place}: a list of one or more variants is needed, not {allowed!r}")
        names = registry.names(kind)
        for variant in allowed:
            if variant not in names:
                raise SearchSpaceError(
                    f"{place}: unknown variant {variant!r} of kind {kind!r}{suggestion(variant, names)}"
                )
        if len(set(allowed)) != len(allowed):
            raise SearchSpaceError(f"{place}: a variant is named twice in {list(allowed)}")

    def options(self, sites: Sequence[Site]) -> dict[str, tuple[str, ...]]:
        """site name -> the variants allowed there, in the model's order of sites; every site is present."""
        present = sorted({site.kind for site in sites})
        for kind, allowed in self.kinds.items():
            if kind not in present and set(allowed) != {EXACT}:
                raise SearchSpaceError(
                    f"{kind}: this model has no site of that kind; it has {', '.join(present)}"
                )
        for pattern in self.sites:
            if not any(fnmatch.fnmatchcase(site.name, pattern) for site in sites):
                names = [site.name for site in sites]
                raise SearchSpaceError(
                    f"{pattern}: matches no site of this model{suggestion(pattern, names)}"
                )
        chosen: dict[str, tuple[str, ...]] = {}
        for site in sites:
            allowed, place = tuple(self.kinds.get(site.kind, (EXACT,))), site.kind
            for pattern, narrower in self.sites.items():
                if fnmatch.fnmatchcase(site.name, pattern):
                    self._check_variants(pattern, site.kind, narrower)
                    allowed, place = tuple(narrower), pattern
            for variant in allowed:
                if variant != EXACT and variant not in site.variants:
                    raise SearchSpaceError(
                        f"{place}: {site.name} cannot take {variant!r}{suggestion(variant, site.variants)}"
                    )
            chosen[site.name] = allowed
        return chosen

    def size(self, sites: Sequence[Site]) -> int:
        """How many architectures there are in the space."""
        count = 1
        for allowed in self.options(sites).values():
            count *= len(allowed)
        return count

    def contains(self, architecture: Architecture, sites: Sequence[Site]) -> bool:
        """Whether every site's variant is an allowed one (a named baseline may lie outside)."""
        chosen = choices(architecture, sites)
        return not architecture.structure and all(
            chosen[name] in allowed for name, allowed in self.options(sites).items()
        )

    def baselines(
        self,
        sites: Sequence[Site],
        price: Callable[[str, str], float] | None = None,
        offered: Mapping[str, Sequence[str]] | None = None,
    ) -> dict[str, Architecture]:
        """The named references: every recipe of `BASELINES` that the model's sites can take and, with a
        price, `all_cheapest`.

        price: (site name, variant) -> what the variant costs there, in any unit. `all_cheapest` takes at
            each site the allowed variant of least price (the first named one among equals).

        offered: site -> variants that `all_cheapest` takes from, where fewer than the space allows.

        The recipes are references whether or not their variants are in the space. A recipe that some site
        cannot take (2quad where the model has no 2quad form) is left out.
        """
        found: dict[str, Architecture] = {}
        for name, recipe in BASELINES.items():
            picked = {site.name: recipe.get(site.kind, EXACT) for site in sites}
            if all(picked[site.name] in (EXACT, *site.variants) for site in sites):
                found[name] = architecture_of(picked)
        if price is not None:
            options = self.options(sites) if offered is None else offered
            found["all_cheapest"] = architecture_of(
                {
                    name: min(allowed, key=lambda variant: price(name, variant))
                    for name, allowed in options.items()
                }
            )
        return found


def choices(architecture: Architecture, sites: Sequence[Site]) -> dict[str, str]:
    """site name -> variant for every site, the ones the architecture leaves out being exact."""
    return {site.name: architecture.sites.get(site.name, EXACT) for site in sites}


def architecture_of(picked: Mapping[str, str]) -> Architecture:
    """The architecture with these variants. Exact sites are left out, so that equal models have equal
    keys.
    """
    return Architecture({name: variant for name, variant in picked.items() if variant != EXACT})
