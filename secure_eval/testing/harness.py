"""Runs protocol code in all parties of a protocol, through the same roles, phases and dealing as a compiled
model.

`evaluate(protocol, f, x, y)` shares ring elements, runs `await f(p, x, y)` in every party and puts the shares
of what it returns
together again. The client's declared outputs are empty here: results are collected inside the parties'
process, for tests only.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secure_eval import ring
from secure_eval.correlations.correlation import Correlation, Recorder, Store
from secure_eval.network.transport import Counting, Transport
from secure_eval.parties.launch import Threads
from secure_eval.parties.roles import Party, Plan, party_names
from secure_eval.program import Node, Program, Ref
from secure_eval.protocols.base import Bits, Protocol, Secret
from secure_eval.scheduler import Scheduler
from secure_eval.testing.knowledge import Knowledge, Traffic

Function = Callable[..., Awaitable[Any]]


def observe(transports: Mapping[str, Transport]) -> list[Traffic]:
    """Records everything that these transports send and receive from now on; returns the growing record."""
    record: list[Traffic] = []
    for role, transport in transports.items():
        _wrap(role, transport, record)
    return record


def _wrap(role: str, transport: Transport, record: list[Traffic]) -> None:
    exchange = transport.exchange
    rounds: dict[str, int] = {}

    def observed(sends: Any, receives: Any, *args: Any, **kwargs: Any) -> Any:
        received = exchange(sends, receives, *args, **kwargs)
        phase = transport.ledger.current
        number = rounds.get(phase, 0)
        rounds[phase] = number + 1
        for messages, sent in ((sends, True), (received, False)):
            for peer, tensors in messages.items():
                record.extend(Traffic(phase, role, peer, sent, number, i, t) for i, t in enumerate(tensors))
        return received

    transport.exchange = observed  # type: ignore[method-assign]


class _Party(Party):
    """A party that runs a given coroutine function in place of a program's secret operations."""

    function: Function
    fractions: Sequence[int]
    weight_names: Sequence[str]
    raw: Any = None

    def evaluate(
        self, source: Recorder | Store, public: Mapping[str, Tensor], inputs: Mapping[str, Secret]
    ) -> list[Any]:
        p = self.protocol(self.number, source, self.device, self.fraction_bits)
        secrets = [Secret(s.shares, bits) for s, bits in zip(inputs.values(), self.fractions, strict=True)]
        weights = [self._weights[name] for name in self.weight_names]

        async def run() -> Any:
            return await self.function(p, *secrets, *weights)

        self.raw = Scheduler(self.transport).run(run())
        return []


class _Plan(Plan):
    def __init__(self, program: Program, make: Callable[[Transport], _Party]):
        names = list(make(Counting("party0")).weight_names)
        party = make(Counting("party0"))
        party.begin(program)
        party.share_weights_on_meta()
        recorder = Recorder(party.transport.ledger)
        party.open_weights(recorder)
        self.setup: list[Correlation] = list(recorder.plan)
        self.setup_tags = list(recorder.tags)
        self.weights = names if self.setup else []
        recorder = Recorder(party.transport.ledger)
        with party.transport.ledger.phase("online") as self.counted:
            party.evaluate(recorder, *party.meta_inputs())
        self.query: list[Correlation] = list(recorder.plan)
        self.tags = list(recorder.tags)


def _program(
    values: Sequence[Tensor], weights: Sequence[Tensor]
) -> tuple[Program, dict[str, Tensor], list[str]]:
    """A program that shares ring elements and computes nothing."""
    nodes, inputs, names = [], {}, []
    for i, value in enumerate(values):
        nodes.append(
            Node(f"x{i}", "input", (f"x{i}",), "client", tuple(value.shape), ring.DTYPE, integral=True)
        )
        nodes.append(
            Node(
                f"s{i}",
                "share_input",
                (Ref(f"x{i}"),),
                "secret",
                tuple(value.shape),
                ring.DTYPE,
                integral=True,
            )
        )
        inputs[f"x{i}"] = value
    parameters = {}
    for i, weight in enumerate(weights):
        parameters[f"p{i}"] = weight
        names.append(f"w{i}")
        nodes.append(Node(f"p{i}", "parameter", (), "owner", tuple(weight.shape), weight.dtype))
        nodes.append(
            Node(f"w{i}", "share_weight", (Ref(f"p{i}"),), "secret", tuple(weight.shape), weight.dtype)
        )
        nodes.append(Node(f"use{i}", "mul", (Ref(f"w{i}"), Ref(f"w{i}")), "secret", tuple(weight.shape)))
    return Program(tuple(nodes), tuple(inputs), (), parameters=parameters), inputs, names


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` saw: reconstructed `value`, the parties' `raw` results, and party 0's online bytes and
    rounds.
    """

    value: Any
    raw: tuple[Any, ...]
    bytes: int
    rounds: int
    predicted_bytes: int
    predicted_rounds: int
    plan: tuple[Correlation, ...]
    traffic: tuple[Traffic, ...]


def evaluate(
    protocol: type[Protocol],
    function: Function,
    *values: Tensor,
    fraction_bits: int | Sequence[int] = 16,
    weights: Sequence[Tensor] = (),
    record: bool = False,
    default_bits: int = 16,
    device: torch.device | str = "cpu",
    knowledge: Knowledge | None = None,
    queries: int = 1,
) -> Evaluation:
    """Runs `await function(p, *secrets, *weights)` in every party.

    Args:
        function: coroutine function; returns Secrets, Bits, or lists or dicts of them (anything else is
        passed on from party 0).
        values: int64 ring elements, any shapes; each becomes a secret.
        fraction_bits: of the secrets, one for all or one each.
        weights: floating-point tensors that get the treatment of a model's weights (opened under a fixed mask
        at set-up).
        record: whether to keep all traffic.
        device: where shares live; the reconstructed value is on the CPU.
        knowledge: gets what every role draws, expands, sends and receives, from set-up on.
        queries: how often to ask; the value and the counts are the last one's.
    """
    fractions = [fraction_bits] * len(values) if isinstance(fraction_bits, int) else list(fraction_bits)
    program, inputs, names = _program(values, weights)

    def make(transport: Transport) -> _Party:
        party = _Party(protocol, transport, default_bits)
        party.function, party.fractions, party.weight_names = function, fractions, names
        return party

    plan = _Plan(program, make)
    with nullcontext() if knowledge is None else knowledge.watching():
        return _evaluated(
            protocol, program, plan, make, inputs, default_bits, device, record, knowledge, queries
        )


def _evaluated(
    protocol: type[Protocol],
    program: Program,
    plan: _Plan,
    make: Callable[[Transport], _Party],
    inputs: Mapping[str, Tensor],
    default_bits: int,
    device: torch.device | str,
    record: bool,
    knowledge: Knowledge | None,
    queries: int,
) -> Evaluation:
    launcher = Threads(protocol, default_bits, device)
    try:
        parties = [make(launcher._transports[name]) for name in party_names(protocol)]
        launcher._parties = list(parties)
        traffic = observe(launcher._transports) if record or knowledge is not None else []
        if knowledge is not None:
            knowledge.traffic = traffic
            for role in filter(None, (launcher._owner, launcher._client, launcher._dealer, *parties)):
                for phase in ("setup", "offline", "online"):
                    if hasattr(role, phase):
                        setattr(role, phase, knowledge.labelled(role.transport.role, getattr(role, phase)))
        launcher.setup(program, plan)
        for _ in range(queries):
            launcher.offline()
            launcher.online(inputs)
        online = launcher._transports["party0"].ledger.phases["online"]
        # The empty reply to the client and the inputs' arrival are exchanges of the role, not of
        # the function.
        return Evaluation(
            value=reconstruct(protocol, [q.raw for q in parties]),
            raw=tuple(q.raw for q in parties),
            bytes=int(online.bytes),
            rounds=int(online.rounds) - 2,
            predicted_bytes=int(plan.counted.bytes),
            predicted_rounds=int(plan.counted.rounds),
            plan=tuple(plan.query),
            traffic=tuple(traffic),
        )
    finally:
        launcher.close()


def reconstruct(protocol: type[Protocol], raw: Sequence[Any]) -> Any:
    """The clear value of what all parties hold shares of. Parties that hold the same part have to agree on it
    (AssertionError).
    """
    first = raw[0]
    if isinstance(first, (list, tuple)):
        return [reconstruct(protocol, items) for items in zip(*raw, strict=True)]
    if isinstance(first, dict):
        return {k: reconstruct(protocol, [r[k] for r in raw]) for k in first}
    if not isinstance(first, (Secret, Bits)):
        return first
    parts: dict[int, Tensor] = {}
    for party, value in enumerate(raw):
        for number, held in zip(protocol.parts_of(party), value.shares, strict=True):
            share = held.cpu()
            if number in parts:
                assert torch.equal(parts[number], share), (
                    f"party {party} holds another part {number} than a party before it"
                )
            parts[number] = share
    assert set(parts) == set(range(protocol.parts)), f"parts {sorted(parts)} of {protocol.parts} are held"
    if isinstance(first, Secret):
        assert all(r.fraction_bits == first.fraction_bits for r in raw), (
            "parties disagree on the fraction bits"
        )
    total = parts[0]
    for number in range(1, protocol.parts):
        total = total + parts[number] if isinstance(first, Secret) else total ^ parts[number]
    return total


def decoded(evaluation: Evaluation) -> Tensor:
    """The reconstructed Secret as real numbers."""
    return ring.decode(evaluation.value, evaluation.raw[0].fraction_bits)
