"""What each variant costs where, so that pricing a candidate is a sum.

A site's signature says everything that its cost depends on, so sites of equal signature are priced
together: the student that has the variant at all of them is predicted whole by the cost model, and the
difference to the exact model, divided by their number, is what the variant adds at one. Differences are kept role by
role, and a candidate's seconds are those of its summed cost: the role that is busiest may be another one in each
candidate.

With a dealer the sums are exact, for mixtures too. Where they are not (in three-party protocols comparisons take turns
among the parties, and operations of different groups can share rounds) the search finds it out on its best few, and then
predicts its whole front without the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import cost_models
import distill
from cost_models import Cost, Device, Network, device_profile, network_profile, seconds
from distill import Architecture, Calibration, OutOfRange, Site
from distill.errors import suggestion
from distill.variants import Variant
from nas.files import digest, read_json, source_digest, write_json
from nas.space import EXACT, SearchSpace, SearchSpaceError, architecture_of, choices

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Progress = Callable[[int, int, str], None]
FORMAT = 3


@dataclass(frozen=True)
class Group:
    """Sites of one kind and signature, which cost the same."""

    name: str
    kind: str
    sites: tuple[str, ...]


class CostTable:
    """The exact model's cost and, for each group of equal sites and each variant, the difference that it
    makes.

    base: cost of the model with every site exact.
    deltas: (group name, variant) -> cost with the variant at ALL sites of the group, minus `base`.
    """

    def __init__(
        self,
        key: str,
        protocol: str,
        groups: Sequence[Group],
        base: Cost,
        deltas: Mapping[tuple[str, str], Cost],
    ) -> None:
        self.key, self.protocol, self.groups, self.base, self.deltas = (
            key,
            protocol,
            tuple(groups),
            base,
            dict(deltas),
        )
        self._group_of = {site: group for group in self.groups for site in group.sites}
        self._last: tuple[str, Cost] | None = None
        self._profiles: dict[tuple[str, str], tuple[Network, Device]] = {}
        self._site_seconds: dict[tuple[str, str, str, str], float] = {}

    @property
    def variants(self) -> dict[str, tuple[str, ...]]:
        """site -> variants that have a price, exact first."""
        priced: dict[str, list[str]] = {group.name: [EXACT] for group in self.groups}
        for group, variant in self.deltas:
            priced[group].append(variant)
        return {site: tuple(priced[group.name]) for group in self.groups for site in group.sites}

    def _counts(self, architecture: Architecture) -> dict[tuple[str, str], int]:
        if architecture.structure:
            raise SearchSpaceError("the price table has no entry for structural changes")
        counts: dict[tuple[str, str], int] = {}
        for site, variant in architecture.sites.items():
            if variant == EXACT:
                continue
            group = self._group_of.get(site)
            if group is None:
                raise SearchSpaceError(f"unknown site {site!r}{suggestion(site, self._group_of)}")
            entry = (group.name, variant)
            if entry not in self.deltas:
                known = [EXACT, *(v for g, v in self.deltas if g == group.name)]
                raise SearchSpaceError(f"{site}: {variant!r} has no price{suggestion(variant, known)}")
            counts[entry] = counts.get(entry, 0) + 1
        return counts

    def price(self, architecture: Architecture) -> Cost:
        """Cost of one candidate: `base` plus its sites' differences. Raises SearchSpaceError for what
        has no price.
        """
        if self._last is not None and self._last[0] == architecture.key():
            return self._last[1]
        cost = self.base
        sizes = {group.name: len(group.sites) for group in self.groups}
        for entry, count in self._counts(architecture).items():
            delta = self.deltas[entry]
            cost = cost + (delta if count == sizes[entry[0]] else delta * count / sizes[entry[0]])
        self._last = (architecture.key(), cost)  # figures and seconds of one candidate are asked for in a row
        return cost

    def seconds(self, architecture: Architecture, network: str = "lan", device: str = "cpu") -> float:
        """Predicted seconds of one online query of a candidate: those of `price`."""
        place = (str(network), str(device))
        if place not in self._profiles:
            self._profiles[place] = (network_profile(network), device_profile(device))
        near, machine = self._profiles[place]
        return seconds(self.price(architecture), network=near, device=machine).total

    def site_seconds(self, site: str, variant: str, network: str = "lan", device: str = "cpu") -> float:
        """Seconds that the variant adds at this site alone, against exact there; negative where it saves.

        A ranking, for the surrogate: seconds of several sites are not the sum of theirs where roles differ.
        """
        architecture = Architecture({site: variant})
        entry = next(iter(self._counts(architecture)), None)
        if entry is None:
            return 0.0
        place = (*entry, str(network), str(device))
        if place not in self._site_seconds:
            exact = self.seconds(Architecture({}), network, device)
            self._site_seconds[place] = self.seconds(architecture, network, device) - exact
        return self._site_seconds[place]

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "key": self.key,
            "protocol": self.protocol,
            "groups": [{"name": g.name, "kind": g.kind, "sites": list(g.sites)} for g in self.groups],
            "base": self.base.to_dict(),
            "deltas": [
                {"group": group, "variant": variant, "cost": cost.to_dict()}
                for (group, variant), cost in self.deltas.items()
            ],
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> CostTable:
        return CostTable(
            data["key"],
            data["protocol"],
            [Group(g["name"], g["kind"], tuple(g["sites"])) for g in data["groups"]],
            Cost.from_dict(data["base"]),
            {(d["group"], d["variant"]): Cost.from_dict(d["cost"]) for d in data["deltas"]},
        )


def table_path(run_dir: str | Path) -> Path:
    """Where a run directory keeps its price table."""
    return Path(run_dir) / "search" / "prices.json"


def groups_of(sites: Sequence[Site]) -> list[Group]:
    """The sites by kind and signature, in the model's order."""
    members: dict[tuple[str, str], list[str]] = {}
    for site in sites:
        members.setdefault((site.kind, str(site.signature)), []).append(site.name)
    return [Group(signature, kind, tuple(names)) for (kind, signature), names in members.items()]


def priced_variants(space: SearchSpace, sites: Sequence[Site]) -> dict[str, tuple[str, ...]]:
    """site -> variants that the space or one of its baselines uses there, without exact."""
    wanted = {name: list(allowed) for name, allowed in space.options(sites).items()}
    for architecture in space.baselines(sites).values():
        for name, variant in choices(architecture, sites).items():
            if variant not in wanted[name]:
                wanted[name].append(variant)
    return {name: tuple(v for v in names if v != EXACT) for name, names in wanted.items()}


def build_cost_table(
    model: PreTrainedModel,
    calibration: Calibration | None,
    space: SearchSpace,
    example_inputs: Mapping[str, torch.Tensor],
    *,
    protocol: str = "dealer2pc",
    run_dir: str | Path,
    progress: Progress | None = None,
) -> CostTable:
    """Price every variant of the space, and of the named baselines, at every kind of site of `model`.

    model: the teacher, or any model of its configuration: weights' values do not matter to a price.
    calibration: as for `distill.apply`; of any sample, for the same reason.
    example_inputs: one query's inputs; their shapes (batch, sequence length) are what is priced.
    run_dir: the table is kept in `search/prices.json` there, entry by entry, so that a killed run goes on;
        it is made anew when the model's configuration, the protocol, the shapes, the groups or our own code
        have changed.

    One prediction for the exact model and one for each (group, variant).
    """
    sites = distill.find_sites(model)
    wanted = priced_variants(space, sites)
    groups = groups_of(sites)
    entries = [
        (group, variant)
        for group in groups
        for variant in dict.fromkeys(v for site in group.sites for v in wanted[site])
    ]
    key = digest(
        FORMAT,
        _shape_config(model),
        protocol,
        {name: [str(value.dtype), list(value.shape)] for name, value in example_inputs.items()},
        [[group.name, group.sites] for group in groups],
        source_digest(["secure_eval", "cost_models", "distill"]),
    )
    path = table_path(run_dir)
    found = read_json(path)
    table: CostTable | None = None
    if found is not None and found.get("format") == FORMAT and found.get("key") == key:
        table = CostTable.from_dict(found)
    total = len(entries) + 1
    report = progress or (lambda done, total, message: None)
    if table is None:
        report(0, total, "pricing the exact model")
        whole = predict_whole(model, Architecture({}), calibration, example_inputs, protocol)
        # What adds up, without the split by site; each role's own work does, and decides the seconds.
        base = Cost(whole.setup, whole.offline, whole.online, roles=whole.roles)
        table = CostTable(key, protocol, groups, base, {})
        write_json(path, table.to_dict())
    deltas = dict(table.deltas)
    for done, (group, variant) in enumerate(entries, start=1):
        if (group.name, variant) not in deltas:
            report(done, total, f"pricing {group.kind} {variant}")
            architecture = architecture_of({site: variant for site in group.sites})
            whole = predict_whole(model, architecture, calibration, example_inputs, protocol)
            deltas[group.name, variant] = whole - table.base
            table = CostTable(key, protocol, groups, table.base, deltas)
            write_json(path, table.to_dict())
    report(total, total, "prices known")
    return table


def predict_whole(
    model: PreTrainedModel,
    architecture: Architecture,
    calibration: Calibration | None,
    example_inputs: Mapping[str, torch.Tensor],
    protocol: str,
) -> Cost:
    """The cost model's own prediction for an assembled student, without any table."""
    known = None if calibration is None else _AnyConstants(calibration.statistics)
    student = distill.apply(model, architecture, calibration=known, share_weights=True)
    return cost_models.predict(student, dict(example_inputs), protocol=protocol)


class _AnyConstants(Calibration):
    """A calibration for prices: a variant that does not fit fixed point has one too, with the constants that it is
    made with."""

    def fit(self, site: str, variant: Variant, size: int) -> dict[str, torch.Tensor]:
        try:
            return super().fit(site, variant, size)
        except OutOfRange:
            assert variant.module is not None
            made: torch.nn.Module = variant.module(**variant.arguments(size))
            return dict(made.state_dict())


def _shape_config(model: PreTrainedModel) -> dict[str, Any]:
    """What of the configuration decides shapes and operations; labels' names, paths and drop-out do not."""
    config = model.config.to_dict()
    ignored = (
        "_name_or_path",
        "id2label",
        "label2id",
        "transformers_version",
        "torch_dtype",
        "dtype",
        "sordino",
    )
    kept = {name: value for name, value in config.items() if name not in ignored and "dropout" not in name}
    return {"class": type(model).__name__, "labels": len(config.get("id2label") or {}), **kept}
