"""The counting run: every role on meta tensors over a transport that only counts.

Bytes and rounds come from the same code that sends them in a real run; the work (multiply-accumulates, memory traffic, kernels) is
counted by a dispatch mode over that run. Nothing is allocated, so any model that a laptop can describe can be counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from secure_eval.measurement import Counts, Measurement
from secure_eval.program import Program
from secure_eval.protocols.base import Protocol
from secure_eval.randomness import MetaStream
from secure_eval.roles import Client, Dealer, Owner, Party, Plan, party_names
from secure_eval.transport import Counting

_MATMULS = {"mm", "bmm", "mv", "dot", "addmm", "baddbmm", "matmul"}
_FREE = {"detach", "alias", "empty", "lift_fresh", "_to_copy", "zeros_like"}


class WorkCounter(TorchDispatchMode):
    """Counts local work into a Counts: matrix products as MACs, everything else as bytes read and written."""

    def __init__(self, counts: Counts):
        super().__init__()
        self._counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        if func.is_view or name in _FREE:
            return result
        self._counts.kernels += 1
        tensors = [t for t in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        outputs = [t for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, torch.Tensor)]
        if name in _MATMULS:
            inner = tensors[0].shape[-1]
            self._counts.macs += prod(outputs[0].shape) * inner
        self._counts.traffic_bytes += sum(t.numel() * t.element_size() for t in tensors + outputs)
        return result


@contextmanager
def _work(role: Any, phase: str) -> Iterator[None]:
    """Counts the work of one phase of a role into its ledger."""
    before = _expanded(role)
    counts = Counts()
    with WorkCounter(counts):
        yield
    total = role.transport.ledger.phases[phase]
    total.macs, total.traffic_bytes, total.kernels = counts.macs, counts.traffic_bytes, counts.kernels
    total.random_bytes = _expanded(role) - before


def _expanded(role: Any) -> int:
    """Bytes that the role's streams have expanded so far."""
    streams = [*getattr(role, "_streams", ()), *([role._dealer] if hasattr(role, "_dealer") else [])]
    return sum(s.expanded_bytes for s in streams if isinstance(s, MetaStream))


def count(program: Program, protocol: type[Protocol], fraction_bits: int = 16, plan: Plan | None = None) -> Measurement:
    """What set-up, one query's offline phase and one query cost under a protocol, without running them (seconds stay None)."""
    plan = plan or Plan(program, protocol, fraction_bits)
    measurement = Measurement()
    client, owner = (cls(protocol, Counting(name), fraction_bits) for cls, name in ((Client, "client"), (Owner, "owner")))
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
    example = {n.name: torch.empty(n.shape, dtype=n.dtype, device="meta") for n in program.nodes if n.op == "input"}
    with _work(client, "online"):
        client.online(example)
    roles = [client, owner, *parties, *([dealer] if dealer else [])]
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
