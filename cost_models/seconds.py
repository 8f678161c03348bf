"""From counts to seconds: a device's work and a network's rounds, added up."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from cost_models.cost import Cost, Phase
from cost_models.machine import device as load_device
from cost_models.profile_files import AUTO, Device, Network
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
    device: str | Path | Device = AUTO,
    phase: str = "online",
) -> Seconds:
    """Seconds of one phase of one query; `phase` says which, of a Phase too.

        busy     = the local work: calls, bytes and multiply-accumulates of each kind at the device's rates
        waiting  = rounds * the longer of (round trip / 2) and the device's time for a round
        handling = handled bytes / the device's rate for messages
        sending  = path bytes / bandwidth

    Set-up and the online phase take busy + waiting + the longer of handling and sending. A round begins when the local work before it is
    done, so work and network do not overlap; encrypting, copying and decrypting a message does overlap with its way over the network.

    The offline phase is a stream: it takes waiting + the longer of sending and the busiest role's busy + handling.

    Roles that share one machine's cores take no less than their busy and handling seconds together, divided by the cores.

    `Seconds.compute` is the busiest role's local work, `Seconds.network` what the phase takes besides. Of a Phase, which knows no roles,
    the local work is the largest of each kind, and cores are not shared. `device` is a profile's name or file, or "auto": this
    machine, measured once (machine.py). Raises ProfileError for an unknown network or device.
    """
    d, n = load_device(device), load_network(network)
    counts = cost if isinstance(cost, Phase) else getattr(cost, phase)
    roles = [] if isinstance(cost, Phase) else list(cost.roles.get(phase, {}).values())
    work = [(d.seconds(c.work), c.handled_bytes / d.message_bytes_per_s) for c in roles or [counts]]
    busy = max(seconds for seconds, _ in work)
    waiting = counts.rounds * max(d.round_s, n.round_s)
    handling, sending = (
        counts.handled_bytes / d.message_bytes_per_s,
        counts.path_bytes / n.bandwidth_bytes_per_s,
    )
    if phase == "offline":
        total = waiting + max(sending, *map(sum, work))
    else:
        total = busy + waiting + max(handling, sending)
    if n.one_machine and d.cores and roles:
        total = max(total, sum(map(sum, work)) / d.cores)
    return Seconds(busy, total - busy)
