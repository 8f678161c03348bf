"""Networks and devices as YAML profiles: shipped ones by name, any other by path."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml

from secure_eval.emulation import Link


class ProfileError(ValueError):
    """A profile is not there, or does not say what a profile has to."""


@dataclass(frozen=True)
class Network:
    """A link between two parties.

    `round_trip_s`: seconds from a party to its peer and back; a round of simultaneous messages takes half of it.
    `bandwidth_bytes_per_s`: payload bytes a second in one direction. `message_overhead_s`: processing a message costs besides.
    """

    name: str
    round_trip_s: float
    bandwidth_bytes_per_s: float
    message_overhead_s: float = 0.0
    note: str = ""

    def link(self) -> Link:
        """What `secure_eval.compile(network=…)` emulates. Processing a message is work that a run really does, so it is left out."""
        return Link(self.round_trip_s, self.bandwidth_bytes_per_s)


@dataclass(frozen=True)
class Device:
    """What one party's device does a second, measured by `sordino calibrate`.

    `macs_per_s`: ring multiply-accumulates; `traffic_bytes_per_s`: memory read and written by elementwise steps;
    `random_bytes_per_s`: expanded from seeds; `kernel_s`: seconds that a tensor operation costs however small it is;
    `round_s`: seconds that sending and receiving one round's messages costs besides the network.
    """

    name: str
    macs_per_s: float
    traffic_bytes_per_s: float
    random_bytes_per_s: float
    kernel_s: float
    round_s: float = 0.0
    hardware: str = ""
    versions: str = ""
    date: str = ""
    note: str = ""


P = TypeVar("P", Network, Device)


def _folder(kind: str) -> Path:
    return Path(str(resources.files("cost_models"))) / "profiles" / kind


def names(kind: str) -> list[str]:
    """Names of the shipped profiles of a kind: "networks" or "devices"."""
    return sorted(p.stem for p in _folder(kind).glob("*.yaml"))


def network(name_or_path: str | Path | Network) -> Network:
    """The network profile of that name or file. Raises ProfileError."""
    return (
        name_or_path if isinstance(name_or_path, Network) else _load(Network, "networks", str(name_or_path))
    )


def device(name_or_path: str | Path | Device) -> Device:
    """The device profile of that name or file. Raises ProfileError."""
    return name_or_path if isinstance(name_or_path, Device) else _load(Device, "devices", str(name_or_path))


def _load(cls: type[P], kind: str, name: str) -> P:
    path = Path(name) if name.endswith((".yaml", ".yml")) else _folder(kind) / f"{name}.yaml"
    if not path.is_file():
        near = difflib.get_close_matches(name, names(kind), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ProfileError(
            f"no {cls.__name__.lower()} profile {name!r}.{hint} Allowed: {', '.join(names(kind))}, or the path of a YAML file"
        )
    data = yaml.safe_load(path.read_text())
    if not isinstance(data, dict):
        raise ProfileError(
            f"{path}: expected a mapping of the fields {', '.join(f.name for f in fields(cls))}"
        )
    return _checked(cls, path, {"name": path.stem, **data})


def _checked(cls: type[P], path: Path, data: dict[str, Any]) -> P:
    known = {f.name: f for f in fields(cls)}
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise ProfileError(f"{path}: unknown field {unknown[0]!r}; allowed: {', '.join(known)}")
    for name, f in known.items():
        if f.type == "float" and name in data:
            value = data[name] = _number(data[name])
            if (
                isinstance(value, bool)
                or not isinstance(value, (int, float))
                or value < 0
                or (value == 0 and name.endswith("per_s"))
            ):
                raise ProfileError(f"{path}: {name} is {value!r}; allowed: a positive number")
    try:
        return cls(**data)
    except TypeError as error:
        raise ProfileError(f"{path}: {error}; needed: {', '.join(known)}") from None


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e9 as a text: people mean the number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
