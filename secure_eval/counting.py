"""The counting run: every role on meta tensors over a transport that only counts.

Bytes and rounds come from the same code that sends them in a real run; the work (multiply-accumulates, memory
traffic, kernels) and the memory are counted over that run: fused steps report themselves (kernels.py), a
dispatch mode sees the other operations. Nothing is allocated, so any model that a laptop can describe can be
counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor

from secure_eval.kernels.meta_tensors import MetaMemo, nbytes, tensors_in
from secure_eval.kernels.observation import observing
from secure_eval.measurement import (
    PHASES,
    Counts,
    Ledger,
    Measurement,
    Memory,
    Work,
    path_of,
    phase_of_roles,
)
from secure_eval.memory import MemoryTracker
from secure_eval.network.transport import Counting
from secure_eval.parties.roles import Client, Dealer, Owner, Party, Plan, Role, party_names
from secure_eval.program import Program
from secure_eval.protocols.base import Protocol

_MATMULS = {"mm", "bmm", "mv", "dot", "addmm", "baddbmm", "matmul"}
_FREE = {"detach", "alias", "empty", "lift_fresh", "_to_copy", "zeros_like"}
ELEMENTWISE = "elementwise"


class WorkCounter(MetaMemo):
    """Counts local work into a role's ledger, and follows its memory.

    A kernel (kernels.py) reads its inputs and writes its outputs once; so does any other torch operation.
    """

    def __init__(self, ledger: Ledger, memory: MemoryTracker | None = None):
        super().__init__()
        self._ledger, self._memory = ledger, memory or MemoryTracker()

    def work(self, kind: str, nbytes: int) -> None:
        """Counts one fused step, or one expansion of a seed."""
        self._count(kind, Work(1, 0, nbytes))

    def _count(self, kind: str, work: Work) -> None:
        self._ledger.counts.add_work(kind, work)
        if self._ledger.tagged:
            self._ledger.tag(self._ledger.tagged).add_work(kind, work)

    def hold(self, result: Any) -> Any:
        """Tensors that need memory, as objects of their own."""
        return self._memory.copy(result)

    def seen(self, func: Any, inputs: list[Tensor], result: Any) -> Any:
        if func.is_view:
            self._memory.view(inputs, result)
            return result
        self._memory.new(result)
        kind = kind_of(func, inputs)
        if kind is not None:
            self._count(kind, work_of(kind, inputs, result))
        return result


def kind_of(func: Any, inputs: list[Tensor]) -> str | None:
    """The kind of work that a torch operation is, None of one that does none.

    `product <bits>` of matrix products in a ring of so many bits, with `by columns` where the second operand lies so in memory.
    """
    name = _counted_name(func)
    if name not in _MATMULS:
        return name and ELEMENTWISE
    second = inputs[-1]
    columns = second.dim() > 1 and second.stride(-1) != 1 and second.shape[-1] != 1
    return f"product {inputs[0].element_size() * 8}" + (" by columns" if columns else "")


def work_of(kind: str, inputs: list[Tensor], result: Any) -> Work:
    """The work of one torch operation of a kind: it reads its inputs and writes its outputs once."""
    outputs = list(tensors_in(result))
    macs = 0 if kind == ELEMENTWISE else prod(outputs[0].shape) * inputs[0].shape[-1]
    return Work(1, macs, nbytes(inputs + outputs))


@cache
def _counted_name(func: Any) -> str | None:
    """The name of a torch operation that does work, None of one that does not."""
    name: str = func._schema.name.removeprefix("aten::")
    return None if func.is_view or name in _FREE else name


class _Watched:
    """A role with its memory, whose phases are counted."""

    def __init__(self, role: Role):
        self.role, self.memory = role, MemoryTracker()
        self.peaks: dict[str, int] = {}
        self.kept: dict[str, int] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts the work and the memory of one phase of the role."""
        self.memory.restart()
        with WorkCounter(self.role.transport.ledger, self.memory) as counter, observing(counter):
            yield
        self.peaks[name], self.kept[name] = self.memory.peak, self.memory.live

    def found(self) -> Memory:
        """What the role's memory came to."""
        model = self.kept.get("setup", 0)
        return Memory(
            **{f"{name}_peak_bytes": peak for name, peak in self.peaks.items()},
            model_bytes=model,
            query_bytes=self.kept.get("offline", model) - model,
        )


def count(
    program: Program,
    protocol: type[Protocol],
    fraction_bits: int = 16,
    plan: Plan | None = None,
    held: frozenset[str] = frozenset(),
) -> Measurement:
    """What set-up, one query's offline phase and one query cost under a protocol, without running them
    (seconds stay None). `held` names inputs whose shares the parties have from before: nobody sends them."""
    plan = plan or Plan(program, protocol, fraction_bits)
    client = Client(protocol, Counting("client"), fraction_bits)
    owner = Owner(protocol, Counting("owner"), fraction_bits)
    parties = [Party(protocol, Counting(name), fraction_bits) for name in party_names(protocol)]
    dealer = Dealer(protocol, Counting("dealer"), fraction_bits) if protocol.has_dealer else None
    roles: list[Role] = [client, owner, *parties, *([dealer] if dealer else [])]
    for role in (client, *parties):
        role.held = held
    watched = {role.transport.role: _Watched(role) for role in roles}

    def phase(role: Role, name: str) -> Any:
        return watched[role.transport.role].phase(name)

    with phase(owner, "setup"):
        owner.setup(program)
    with phase(client, "setup"):
        client.setup(program)
    for party in parties:
        with phase(party, "setup"):
            party.setup(program, plan)
    if dealer:
        with phase(dealer, "setup"):
            dealer.setup(plan)
        with phase(dealer, "offline"):
            dealer.offline()
    for party in parties:
        with phase(party, "offline"):
            party.offline()
        with phase(party, "online"):
            party.online()
    example = {
        n.name: torch.empty(n.shape, dtype=n.dtype, device="meta") for n in program.nodes if n.op == "input"
    }
    with phase(client, "online"):
        client.online(example)
    measurement = Measurement(memory={name: w.found() for name, w in watched.items()})
    ledgers = {role.transport.role: role.transport.ledger for role in roles}
    collect(measurement, program, ledgers, with_seconds=False)
    return measurement


def collect(
    measurement: Measurement, program: Program, ledgers: Mapping[str, Ledger], with_seconds: bool
) -> None:
    """Fills a measurement from the roles' ledgers."""
    for phase in PHASES:
        for role, ledger in ledgers.items():
            counts = replace(ledger.phases[phase])
            if not with_seconds:
                counts.seconds = counts.exchange_seconds = None
            measurement.roles[phase][role] = counts
        measurement.path[phase] = path_of(list(ledgers.values()), phase)
        _split(measurement, program, phase, [ledger.tags[phase] for ledger in ledgers.values()])


def _split(measurement: Measurement, program: Program, phase: str, tags: list[dict[str, Counts]]) -> None:
    """Sums a phase's counts by site and by operation: of each role by itself, then the largest over the roles."""
    nodes = program.by_name
    for table, key_of in (
        (measurement.sites_of, lambda node: node.site if node else ""),
        (measurement.operations_of, lambda node: node.op if node else "output"),
    ):
        by_key: dict[str, dict[str, Counts]] = {}
        for role, of_role in enumerate(tags):
            for name, counts in of_role.items():
                found = by_key.setdefault(key_of(nodes.get(name)), {})
                found[str(role)] = found.get(str(role), Counts()) + counts
        table[phase] = {key: phase_of_roles(of_roles) for key, of_roles in by_key.items()}
