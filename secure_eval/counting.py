"""The counting run: every role on meta tensors over a transport that only counts.

Bytes and rounds come from the same code that sends them in a real run; the work (multiply-accumulates, memory
traffic, kernels) is counted over that run: fused steps report themselves (kernels.py), a dispatch mode sees
the other operations. Nothing is allocated, so any model that a laptop can describe can be counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor

from secure_eval.kernels import MetaMemo, observing, tensors_in
from secure_eval.measurement import Counts, Measurement
from secure_eval.program import Program
from secure_eval.protocols.base import Protocol
from secure_eval.randomness import MetaStream
from secure_eval.roles import Client, Dealer, Owner, Party, Plan, Role, party_names
from secure_eval.transport import Counting

_MATMULS = {"mm", "bmm", "mv", "dot", "addmm", "baddbmm", "matmul"}
_FREE = {"detach", "alias", "empty", "lift_fresh", "_to_copy", "zeros_like"}


class WorkCounter(MetaMemo):
    """Counts local work into a Counts: matrix products as MACs, and bytes read and written by everything.

    A kernel (kernels.py) counts as one, and reads its inputs and writes its outputs once; so does any other
    torch operation.
    """

    def __init__(self, counts: Counts):
        super().__init__()
        self._counts = counts

    def kernel(self, traffic: int) -> None:
        """Counts one kernel that reads and writes `traffic` bytes."""
        self._counts.kernels += 1
        self._counts.traffic_bytes += traffic

    def seen(self, func: Any, inputs: list[Tensor], result: Any) -> Any:
        name = _counted_name(func)
        if name is not None:
            outputs = list(tensors_in(result))
            if name in _MATMULS:
                self._counts.macs += prod(outputs[0].shape) * inputs[0].shape[-1]
            self.kernel(sum(t.numel() * t.element_size() for t in inputs + outputs))
        return result


@cache
def _counted_name(func: Any) -> str | None:
    """The name of a torch operation that does work, None of one that does not."""
    name: str = func._schema.name.removeprefix("aten::")
    return None if func.is_view or name in _FREE else name


@contextmanager
def _work(role: Any, phase: str) -> Iterator[None]:
    """Counts the work of one phase of a role into its ledger."""
    before = _expanded(role)
    counts = Counts()
    with WorkCounter(counts) as counter, observing(counter.kernel):
        yield
    total = role.transport.ledger.phases[phase]
    total.macs, total.traffic_bytes, total.kernels = counts.macs, counts.traffic_bytes, counts.kernels
    total.random_bytes = _expanded(role) - before


def _expanded(role: Any) -> int:
    """Bytes that the role's streams have expanded so far."""
    streams = [
        *getattr(role, "_streams", ()),
        *([role._dealer] if hasattr(role, "_dealer") else []),
        *getattr(role, "_common", {}).values(),
    ]
    return sum(s.expanded_bytes for s in streams if isinstance(s, MetaStream))


def count(
    program: Program, protocol: type[Protocol], fraction_bits: int = 16, plan: Plan | None = None
) -> Measurement:
    """What set-up, one query's offline phase and one query cost under a protocol, without running them
    (seconds stay None)."""
    plan = plan or Plan(program, protocol, fraction_bits)
    measurement = Measurement()
    client = Client(protocol, Counting("client"), fraction_bits)
    owner = Owner(protocol, Counting("owner"), fraction_bits)
    parties = [Party(protocol, Counting(name), fraction_bits) for name in party_names(protocol)]
    dealer = Dealer(protocol, Counting("dealer"), fraction_bits) if protocol.has_dealer else None

    owner.setup(program)
    with _work(client, "setup"):
        client.setup(program)
    for party in parties:
        with _work(party, "setup"):
            party.setup(program, plan)
    if dealer:
        with _work(dealer, "setup"):
            dealer.setup(plan)
        with _work(dealer, "offline"):
            dealer.offline()
    for party in parties:
        with _work(party, "offline"):
            party.offline()
        with _work(party, "online"):
            party.online()
    example = {
        n.name: torch.empty(n.shape, dtype=n.dtype, device="meta") for n in program.nodes if n.op == "input"
    }
    with _work(client, "online"):
        client.online(example)
    roles: list[Role] = [client, owner, *parties, *([dealer] if dealer else [])]
    collect(measurement, program, {r.transport.role: r.transport.ledger for r in roles}, with_seconds=False)
    return measurement


def collect(measurement: Measurement, program: Program, ledgers: dict[str, Any], with_seconds: bool) -> None:
    """Fills a measurement from the roles' ledgers; sites and operations from party 0's online tags."""
    for role, ledger in ledgers.items():
        for phase, counts in ledger.phases.items():
            kept = Counts(**{**counts.__dict__, "seconds": counts.seconds if with_seconds else None})
            measurement.roles[phase][role] = kept
    split(measurement, program, ledgers["party0"].tags["online"])


def split(measurement: Measurement, program: Program, tags: dict[str, Counts]) -> None:
    """Sums the online counts of party 0 by site and by operation."""
    nodes = program.by_name
    for name, counts in tags.items():
        node = nodes.get(name)
        site, operation = (node.site, node.op) if node else ("", "output")
        for table, key in ((measurement.sites, site), (measurement.operations, operation)):
            table[key] = table.get(key, Counts()) + counts
