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

    compute   the local work: calls, bytes and multiply-accumulates of each kind at the device's rates
    network   rounds * the longer of (round trip / 2) and the device's time for a round
              + the longer of (path bytes / bandwidth) and (handled bytes / the device's rate for messages)

    A round is one message each way at the same time, so it takes half a round trip, and it is over when its longest message is there. A
    round begins when the local work before it is done, so work and network do not overlap; encrypting, copying and decrypting a message
    does overlap with its way over the network. Proportional to the cost.

    Raises ProfileError for an unknown network or device.
    """
    counts = cost if isinstance(cost, Phase) else getattr(cost, phase)
    d, n = load_device(device), load_network(network)
    compute = sum(d.rate(kind).seconds(work) + work.calls * d.step_s for kind, work in counts.work.items())
    waiting = counts.rounds * max(d.round_s, n.round_s)
    sending = max(counts.path_bytes / n.bandwidth_bytes_per_s, counts.handled_bytes / d.message_bytes_per_s)
    return Seconds(compute, waiting + sending)
