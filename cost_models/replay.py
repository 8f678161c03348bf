"""One party's local work, run and timed by itself.

Protocol code does not depend on the values that arrive. So a party can be run for real against a transport that answers every message
with tensors of the stated shapes: what passes is the time of its own work, without peers, network or contention.
"""

from __future__ import annotations

from time import perf_counter

import torch
from torch import Tensor

from secure_eval.measurement import Counts
from secure_eval.program import Program
from secure_eval.protocols.base import Protocol
from secure_eval.roles import Party, Plan
from secure_eval.transport import Incoming, Outgoing, Transport


class Echo(Transport):
    """Sends to nobody; what is expected arrives at once, as zeros."""

    def _move(self, sends: Outgoing, receives: Incoming) -> dict[str, list[Tensor]]:
        return {
            peer: [torch.zeros(s.shape, dtype=s.dtype, device=self.device) for s in specs]
            for peer, specs in receives.items()
        }


def replay(
    program: Program, protocol: type[Protocol], device: str = "cpu", repeats: int = 5, fraction_bits: int = 16
) -> Counts:
    """Online counts of party 0 with `seconds` of its local work: the median over `repeats` queries after a first one."""
    plan = Plan(program, protocol, fraction_bits)
    party = Party(protocol, Echo("party0", device), fraction_bits)
    seconds = []
    with torch.inference_mode():
        party.setup(program, plan)
        for _ in range(repeats + 1):
            party.offline()
            started = perf_counter()
            party.online()
            seconds.append(perf_counter() - started)
    counts = party.transport.ledger.phases["online"]
    counts.seconds = sorted(seconds[1:])[repeats // 2]
    return counts
