"""From counts to seconds: a device's work and a network's rounds, added up."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from cost_models.cost import Cost, Phase
from cost_models.profile_files import Device, Network
from cost_models.profile_files import device as load_device
from cost_models.profile_files import network as load_network


@dataclass(frozen=True)
class Seconds:
    """Seconds of one phase: local work, waiting for the network, and both."""

    compute: float
    network: float

    @property
    def total(self) -> float:
        return self.compute + self.network

    def to_dict(self) -> dict[str, float]:
        return {**asdict(self), "total": self.total}


def seconds(
    cost: Cost | Phase,
    network: str | Path | Network = "wan",
    device: str | Path | Device = "cpu",
    phase: str = "online",
) -> Seconds:
    """Seconds of one phase of one query.

    T = work + rounds * (round trip / 2) + bytes / bandwidth: a round is one message each way at the same time, so it takes half a round
    trip; nothing overlaps, because the engine's rounds begin when the local work before them is done. Linear in the cost.

    Raises ProfileError for an unknown network or device.
    """
    counts = cost if isinstance(cost, Phase) else getattr(cost, phase)
    d, n = load_device(device), load_network(network)
    compute = (
        counts.macs / d.macs_per_s
        + counts.traffic_bytes / d.traffic_bytes_per_s
        + counts.random_bytes / d.random_bytes_per_s
        + counts.kernels * d.kernel_s
        + counts.rounds * d.round_s
    )
    waiting = (
        counts.rounds * (n.round_trip_s / 2 + n.message_overhead_s) + counts.bytes / n.bandwidth_bytes_per_s
    )
    return Seconds(compute, waiting)
