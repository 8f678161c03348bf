"""Networks, devices and prices as YAML profiles: shipped ones by name, any other by path."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib import resources
from math import inf
from pathlib import Path
from typing import Any, TypeVar

import yaml

from secure_eval.measurement import Work
from secure_eval.network.emulation import Link


class ProfileError(ValueError):
    """A profile is not there, or does not say what a profile has to."""


@dataclass(frozen=True)
class Network:
    """A link between two parties.

    `round_trip_s`: seconds from a party to its peer and back; a round of simultaneous messages takes half of it.
    `bandwidth_bytes_per_s`: payload bytes a second in one direction. `message_overhead_s`: processing a message costs besides.
    `one_machine`: the roles are processes of one machine and share its cores.
    `sordino calibrate --network` writes one for a link that it has measured, with the date and the versions at both ends.
    """

    name: str
    round_trip_s: float
    bandwidth_bytes_per_s: float
    message_overhead_s: float = 0.0
    one_machine: bool = False
    versions: str = ""
    date: str = ""
    note: str = ""

    @property
    def round_s(self) -> float:
        """Seconds that a round takes however short its messages: one message each way at the same time."""
        return self.round_trip_s / 2 + self.message_overhead_s

    def link(self) -> Link:
        """What `secure_eval.compile(network=…)` emulates. Processing a message is work that a run really does, so it is left out."""
        return Link(self.round_trip_s, self.bandwidth_bytes_per_s)


@dataclass(frozen=True)
class Rate:
    """What one kind of local work takes: so long for each call, and for each byte read or written and each multiply-accumulate."""

    call_s: float = 0.0
    bytes_per_s: float = inf
    macs_per_s: float = inf

    def seconds(self, work: Work) -> float:
        return work.calls * self.call_s + work.bytes / self.bytes_per_s + work.macs / self.macs_per_s

    def longer(self, times: float) -> Rate:
        """The rate of work that takes so many times as long."""
        return Rate(self.call_s * times, self.bytes_per_s / times, self.macs_per_s / times)


@dataclass(frozen=True)
class Device:
    """What one party's device does, measured by `sordino calibrate`.

    `work`: a rate for each kind of local work (`secure_eval.measurement.Counts.work`): `elementwise`, `product 64` and `generator` at
    least; a fused step without one of its own counts as `elementwise`, a product as `product 64`.
    `step_s`: what the engine's own bookkeeping takes for each call. `round_s`, `message_bytes_per_s`: what a round takes, and how many
    bytes a second are sent and received together, where the network takes no time: encryption, copies, waiting for each other.
    `cores`: what roles on one machine share, 0 where that isn't known.
    `file`: where the profile lies, empty where it was not read from a file.
    `machine`: "cpu", or "gpu" where the work is done by an accelerator, which costs money and power besides its machine.
    """

    name: str
    work: Mapping[str, Rate]
    step_s: float = 0.0
    round_s: float = 0.0
    message_bytes_per_s: float = inf
    cores: int = 0
    machine: str = "cpu"
    hardware: str = ""
    versions: str = ""
    date: str = ""
    note: str = ""
    file: str = field(default="", compare=False)

    def source(self) -> dict[str, str]:
        """Where figures made with it come from: name, hardware, versions, date, note, file."""
        return {k: str(vars(self)[k]) for k in ("name", "hardware", "versions", "date", "note", "file")}

    def to_dict(self) -> dict[str, Any]:
        """What a profile's file says: numbers to four digits, without those that cost nothing."""
        found = {
            name: _rounded(value)
            for name, value in vars(self).items()
            if name not in ("work", "file") and value not in ("", inf)
        }
        found["work"] = {
            kind: {name: _rounded(value) for name, value in vars(rate).items() if 0 < value < inf}
            for kind, rate in self.work.items()
        }
        return found

    def rate(self, kind: str) -> Rate:
        """The rate of a kind of work."""
        own = self.work.get(kind)
        return own or self.work["product 64" if kind.startswith("product ") else "elementwise"]

    def seconds(self, work: Mapping[str, Work]) -> float:
        """Seconds of local work, by kind, done one after the other."""
        return sum(self.rate(kind).seconds(w) + w.calls * self.step_s for kind, w in work.items())


@dataclass(frozen=True)
class Prices:
    """What an owner pays: one figure each, in US dollars and watts.

    `machine_hour_usd`: one party's (or the dealer's) machine for an hour; `accelerator_hour_usd`: its accelerator besides, where the work
    is done by one; `egress_gb_usd`: 10^9 bytes sent to another machine; `machine_watts`, `accelerator_watts`: drawn while computing.
    """

    name: str
    machine_hour_usd: float
    accelerator_hour_usd: float
    egress_gb_usd: float
    machine_watts: float
    accelerator_watts: float
    date: str = ""
    note: str = ""


AUTO = "auto"
"""The device profile of the machine at hand (machine.py), which has no file of its own among the shipped ones."""

P = TypeVar("P", Network, Device, Prices)
NEEDED = ("elementwise", "product 64", "generator")
MACHINES = ("cpu", "gpu")


def _folder(kind: str) -> Path:
    return Path(str(resources.files("cost_models"))) / "profiles" / kind


def names(kind: str) -> list[str]:
    """Names of the shipped profiles of a kind: "networks", "devices" or "prices"."""
    return sorted(p.stem for p in _folder(kind).glob("*.yaml"))


def network(name_or_path: str | Path | Network) -> Network:
    """The network profile of that name or file. Raises ProfileError."""
    return (
        name_or_path if isinstance(name_or_path, Network) else _load(Network, "networks", str(name_or_path))
    )


def device(name_or_path: str | Path | Device) -> Device:
    """The device profile of that name or file. Raises ProfileError."""
    return name_or_path if isinstance(name_or_path, Device) else _load(Device, "devices", str(name_or_path))


def prices(name_or_path: str | Path | Prices) -> Prices:
    """The price profile of that name or file. Raises ProfileError."""
    return name_or_path if isinstance(name_or_path, Prices) else _load(Prices, "prices", str(name_or_path))


def _load(cls: type[P], kind: str, name: str) -> P:
    path = Path(name) if name.endswith((".yaml", ".yml")) else _folder(kind) / f"{name}.yaml"
    if not path.is_file():
        allowed = [AUTO, *names(kind)] if cls is Device else names(kind)
        near = difflib.get_close_matches(name, allowed, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ProfileError(
            f"no {cls.__name__.lower()} profile {name!r}.{hint} Allowed: {', '.join(allowed)}, or the path of a YAML file"
        )
    data = yaml.safe_load(path.read_text())
    if not isinstance(data, dict):
        raise ProfileError(
            f"{path}: expected a mapping of the fields {', '.join(f.name for f in fields(cls))}"
        )
    return _checked(cls, path, {"name": path.stem, **data})


def _checked(cls: type[P], path: Path, data: dict[str, Any]) -> P:
    known = _numbers_checked(cls, str(path), data)
    if cls is Device and "work" in data:
        data["work"] = _work(path, data["work"])
    if data.get("machine", "cpu") not in MACHINES:
        raise ProfileError(f"{path}: machine is {data['machine']!r}; allowed: {', '.join(MACHINES)}")
    if cls is Device:
        data = {**data, "file": str(path)}
    try:
        return cls(**data)
    except TypeError as error:
        raise ProfileError(f"{path}: {error}; needed: {', '.join(known)}") from None


def _numbers_checked(cls: type[Any], place: str, data: dict[str, Any]) -> list[str]:
    """The names of the fields, after making numbers and texts in `data` what they should be. Raises ProfileError."""
    known = {f.name: f for f in fields(cls)}
    unknown = sorted(set(data) - set(known) | {"file"} & set(data))
    if unknown:
        raise ProfileError(f"{place}: unknown field {unknown[0]!r}; allowed: {', '.join(known)}")
    for name, f in known.items():
        if f.type == "float" and name in data:
            value = data[name] = _number(data[name])
            positive = name.endswith("per_s")
            if (
                isinstance(value, bool)
                or not isinstance(value, (int, float))
                or not value >= 0
                or (value == 0 and positive)
            ):
                allowed = "a positive number" if positive else "a number, 0 or more"
                raise ProfileError(f"{place}: {name} is {value!r}; allowed: {allowed}")
        elif f.type == "int" and name in data:
            if type(data[name]) is not int or data[name] < 0:
                raise ProfileError(f"{place}: {name} is {data[name]!r}; allowed: a whole number, 0 or more")
        elif f.type == "bool" and name in data:
            if type(data[name]) is not bool:
                raise ProfileError(f"{place}: {name} is {data[name]!r}; allowed: true, false")
        elif f.type == "str" and name in data:
            data[name] = str(data[name])  # a date without quotes is no text to YAML
    return list(known)


def _work(path: Path, data: Any) -> dict[str, Rate]:
    kinds = f"a mapping of kinds of work ({', '.join(NEEDED)} at least) to mappings of {', '.join(f.name for f in fields(Rate))}"
    if not isinstance(data, dict) or not all(isinstance(rate, dict) for rate in data.values()):
        raise ProfileError(f"{path}: work is {data!r}; allowed: {kinds}")
    missing = [kind for kind in NEEDED if kind not in data]
    if missing:
        raise ProfileError(f"{path}: work has no {missing[0]!r}; allowed: {kinds}")
    for kind, rate in data.items():
        _numbers_checked(Rate, f"{path}: work: {kind}", rate)
    return {str(kind): Rate(**rate) for kind, rate in data.items()}


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e9 as a text: people mean the number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
