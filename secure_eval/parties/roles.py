"""The roles of a computation: what each holds, sends and receives in each phase.

    client   the data owner: shares inputs, gets output shares, reconstructs the outputs
    owner    the model owner: shares the weights once
    dealer   hands out correlated randomness; sees neither inputs, weights, openings nor results
    party0.. compute on shares

Each role is given a transport and a device and runs unchanged over sockets, threads or the counting transport. Data owners agree on a
seed with each party once; of a value's parts all but the last come from those seeds, and only the last is sent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from secure_eval import ring
from secure_eval.correlations.correlation import (
    Correlation,
    Dealing,
    Fields,
    Recorder,
    Store,
    expand,
    expand_common,
)
from secure_eval.engine import Engine, evaluate_clear, multiplied_weights
from secure_eval.kernels.meta_tensors import MetaMemo, nbytes
from secure_eval.network.transport import Counting, TensorSpec, Transport
from secure_eval.parties.agreement import AGREEMENT, Agreement
from secure_eval.program import Node, Program, Ref
from secure_eval.protocols.base import Protocol, Secret, by_columns
from secure_eval.randomness import INDICES_PER_QUERY, SEED_BYTES, MetaStream, Stream, new_seed
from secure_eval.scheduler import Scheduler, start

_SEED = TensorSpec((SEED_BYTES,), torch.uint8)
_CHUNK_BYTES = 8 << 20


def party_names(protocol: type[Protocol]) -> list[str]:
    return [f"party{i}" for i in range(protocol.parties)]


def role_names(protocol: type[Protocol]) -> list[str]:
    """All roles of a computation under a protocol."""
    return ["client", "owner", *(["dealer"] if protocol.has_dealer else []), *party_names(protocol)]


def links(protocol: type[Protocol]) -> list[tuple[str, str]]:
    """Pairs of roles that talk to each other."""
    parties = party_names(protocol)
    others = [r for r in role_names(protocol) if r not in parties]
    pairs = [(o, p) for o in others for p in parties] + [
        (a, b) for i, a in enumerate(parties) for b in parties[i + 1 :]
    ]
    return [*pairs, ("owner", "client")]


def _seed_tensor(seed: bytes, device: torch.device) -> Tensor:
    return torch.frombuffer(bytearray(seed), dtype=torch.uint8).to(device)


def _stream(seed: Tensor | None, purpose: str) -> Stream:
    if seed is None or seed.device.type == "meta":
        return MetaStream(purpose)
    return Stream(bytes(seed.tolist()), purpose)


def _fraction_bits(node: Node, default: int) -> int:
    """Fraction bits in which a shared value is encoded: none where it is integral."""
    return 0 if node.integral else default


class _Splitter:
    """A data owner's side of sharing: one seed a part but the last, values numbered."""

    def __init__(self, protocol: type[Protocol], transport: Transport, purpose: str):
        self._protocol, self._device = protocol, transport.device
        self._seeds = [new_seed() for _ in range(protocol.parts - 1)]
        meta = transport.device.type == "meta"
        self._streams = [
            _stream(None if meta else _seed_tensor(s, torch.device("cpu")), purpose) for s in self._seeds
        ]

    def seed_messages(self, party: int) -> list[Tensor]:
        held = [j for j in self._protocol.parts_of(party) if j < len(self._seeds)]
        return [_seed_tensor(self._seeds[j], self._device) for j in held]

    def last_part(self, value: Tensor, index: int) -> Tensor:
        for stream in self._streams:
            value = value - stream.tensor(index, value.shape, ring.DTYPE, self._device)
        return value


class _Joiner:
    """A party's side of sharing: expands the parts whose seeds it has, and takes the last from a message."""

    def __init__(
        self,
        protocol: type[Protocol],
        party: int,
        seeds: Sequence[Tensor],
        purpose: str,
        device: torch.device,
    ):
        self._device, self._last = device, protocol.parts - 1
        self._parts = protocol.parts_of(party)
        held = [j for j in self._parts if j < self._last]
        self._streams = {j: _stream(seed, purpose) for j, seed in zip(held, seeds, strict=True)}

    @property
    def takes_message(self) -> bool:
        return self._last in self._parts

    def join(self, shape: Sequence[int], index: int, message: Tensor | None, fraction_bits: int) -> Secret:
        shares = []
        for j in self._parts:
            if j == self._last:
                assert message is not None
                shares.append(message)
            else:
                shares.append(self._streams[j].tensor(index, shape, ring.DTYPE, self._device))
        return Secret(shares, fraction_bits)


def _seed_specs(protocol: type[Protocol], party: int) -> list[TensorSpec]:
    return [_SEED for j in protocol.parts_of(party) if j < protocol.parts - 1]


class Role:
    """Common part of the roles: a program is given once, then each phase runs when the launcher says so."""

    def __init__(self, protocol: type[Protocol], transport: Transport, fraction_bits: int):
        self.protocol, self.transport, self.fraction_bits = protocol, transport, fraction_bits
        self.device = transport.device
        self.program: Program | None = None
        self.held: frozenset[str] = frozenset()
        """Inputs that the parties hold shares of before the query; only counting runs know any."""

    def agree(self, program: Program) -> None:
        """Tells every role that this one talks to what it is about to compute, and hears the same from each. The dealer, which receives
        nothing from anybody, only tells: the parties refuse one that is about to deal for another program.

        Nothing is shared before, and nothing of it is counted: it belongs to making the links. Raises Disagreement, naming the peer and
        what differs.
        """
        me = self.transport.role
        peers = [a if b == me else b for a, b in links(self.protocol) if me in (a, b)]
        mine = Agreement.of(program, self.protocol.name, self.fraction_bits)
        told = [p for p in peers if p != "dealer"]
        heard = self.transport.unite(
            {p: [mine.tensor()] for p in told}, {p: [AGREEMENT] for p in (peers if me != "dealer" else ())}
        )
        for peer, (tensor,) in heard.items():
            mine.compare(me, peer, tensor)

    def _clear(self, program: Program, levels: set[str], environment: dict[str, Any]) -> dict[str, Any]:
        """Adds the clear values of these levels to `environment`."""
        for node in program.nodes:
            if (
                node.level in levels
                and node.name not in environment
                and node.op not in ("input", "parameter", "table")
            ):
                environment[node.name] = evaluate_clear(node, environment, program.constants, self.device)
        return environment

    def _inputs_to_share(self, program: Program) -> list[Node]:
        """The inputs that the client shares in a query."""
        return [n for n in _of_op(program, "share_input") if next(n.references()) not in self.held]


def _tables(program: Program) -> list[Node]:
    return [n for n in program.nodes if n.op == "table"]


def _of_op(program: Program, op: str) -> list[Node]:
    return [n for n in program.nodes if n.op == op]


class Owner(Role):
    """The model owner. Set-up: shares each weight; gives the client the tables that are public to it."""

    def setup(self, program: Program) -> None:
        with self.transport.ledger.phase("setup"):
            splitter = _Splitter(self.protocol, self.transport, "weights")
            environment: dict[str, Any] = {
                name: p.to(self.device)
                if self.device.type != "meta"
                else torch.empty(p.shape, dtype=p.dtype, device="meta")
                for name, p in program.parameters.items()
            }
            self._clear(program, {"constant", "owner"}, environment)
            parts = []
            ledger = self.transport.ledger
            last = self.protocol.parts - 1
            takers = sum(last in self.protocol.parts_of(i) for i in range(self.protocol.parties))
            for index, node in enumerate(_of_op(program, "share_weight")):
                ledger.tagged = node.name
                source = next(node.references())
                value = ring.encode(environment[source], _fraction_bits(node, self.fraction_bits))
                parts.append(splitter.last_part(value, index))
                ledger.tag(node.name).bytes += takers * nbytes(parts[-1:])
            sends: dict[str, list[Tensor]] = {}
            for party, name in enumerate(party_names(self.protocol)):
                takes = last in self.protocol.parts_of(party)
                sends[name] = [*splitter.seed_messages(party), *(parts if takes else [])]
            tables = [environment[n.args[0]] for n in _tables(program)]
            if tables:
                sends["client"] = tables
            self.transport.exchange(sends, {})


@dataclass(frozen=True)
class Prepared:
    """A query's inputs on their way from the client: checked and encoded, not yet shared.

    Attributes:
        public: values of the public inputs, by name.
        encoded: ring elements of what is to be shared, by the name of the share_input node.
        environment: everything in the clear that the client knows of this query.
        seconds: what it took.
    """

    public: Mapping[str, Tensor]
    encoded: Mapping[str, Tensor]
    environment: Mapping[str, Any]
    seconds: float


Inputs = Mapping[str, Tensor] | Prepared
"""A query's inputs: by name, or prepared."""


class Client(Role):
    """The data owner. Set-up: seeds to the parties, tables from the model owner. Online: shares inputs, joins outputs."""

    def setup(self, program: Program) -> None:
        self.program = program
        with self.transport.ledger.phase("setup"):
            self._splitter = _Splitter(self.protocol, self.transport, "inputs")
            self._query = 0
            sends = {
                name: self._splitter.seed_messages(i) for i, name in enumerate(party_names(self.protocol))
            }
            tables = _tables(program)
            receives = {"owner": [TensorSpec(n.shape, n.dtype) for n in tables]} if tables else {}
            received = self.transport.exchange({k: v for k, v in sends.items() if v}, receives)
            self._environment = {n.name: t for n, t in zip(tables, received.get("owner", []), strict=True)}
            self._clear(program, {"constant"}, self._environment)

    def prepare(self, inputs: Mapping[str, Tensor]) -> Prepared:
        """What a query's inputs come to before anything is shared: all of it is computed and encoded, nothing is spent or sent.

        Raises EncodingError, naming the input, for a value that is no number or does not fit the ring; whatever torch raises where the
        client's own part cannot be computed (an index outside its table, say).
        """
        program = self.program
        assert program is not None, "set-up comes first"
        started = perf_counter()
        environment = {**self._environment, **{k: v.to(self.device) for k, v in inputs.items()}}
        self._clear(program, {"public", "client"}, environment)
        public = {
            n.name: environment[n.name] for n in program.nodes if n.op == "input" and n.level == "public"
        }
        for name, value in public.items():
            if self.device.type != "meta" and value.is_floating_point() and bool(value.isnan().any()):
                raise ring.EncodingError(f"public input {name!r} has a value that is no number")
        encoded = {}
        for node in self._inputs_to_share(program):
            source = next(node.references())
            try:
                encoded[node.name] = ring.encode(
                    environment[source], _fraction_bits(node, self.fraction_bits)
                )
            except ring.EncodingError as error:
                raise ring.EncodingError(f"input {source!r}: {error}") from None
        return Prepared(public, encoded, environment, perf_counter() - started)

    def online(self, inputs: Inputs) -> list[Any]:
        """The program's outputs in float32 (other dtypes as captured), for inputs by name, or what `prepare` made of them."""
        program = self.program
        assert program is not None, "set-up comes first"
        ledger = self.transport.ledger
        with ledger.phase("online"):
            prepared = inputs if isinstance(inputs, Prepared) else self.prepare(inputs)
            first = self._query * INDICES_PER_QUERY
            self._query += 1
            parts = [
                self._splitter.last_part(value, first + index)
                for index, value in enumerate(prepared.encoded.values())
            ]
            sends = {}
            for party, name in enumerate(party_names(self.protocol)):
                takes = self.protocol.parts - 1 in self.protocol.parts_of(party)
                sends[name] = [*prepared.public.values(), *(parts if takes else [])]
            self.transport.exchange(sends, {})
            outputs = self._outputs(program, prepared.environment)
        if prepared is inputs:  # what was done ahead belongs to the query as well
            counts = ledger.phases["online"]
            counts.seconds = (counts.seconds or 0.0) + prepared.seconds
        return outputs

    def _outputs(self, program: Program, environment: Mapping[str, Any]) -> list[Any]:
        by_name = program.by_name
        secret = [o.name for o in program.outputs if isinstance(o, Ref) and by_name[o.name].level == "secret"]
        receives = {}
        for party, name in enumerate(party_names(self.protocol)):
            parts_sent = [
                TensorSpec(by_name[s].shape) for s in secret for _ in _revealed(self.protocol, party)
            ]
            receives[name] = [TensorSpec((len(secret),)), *parts_sent]
        received = self.transport.exchange({}, receives)
        values = {}
        for i, name in enumerate(secret):
            parts = []
            for party, peer in enumerate(party_names(self.protocol)):
                mine = len(_revealed(self.protocol, party))
                parts.extend(received[peer][1 + i * mine : 1 + (i + 1) * mine])
            total = torch.stack(parts).sum(0)
            bits = received["party0"][0][i]
            values[name] = (total.to(torch.float64) / 2.0 ** bits.to(torch.float64)).to(by_name[name].dtype)
        return [
            values.get(o.name, environment.get(o.name)) if isinstance(o, Ref) else o for o in program.outputs
        ]


def _revealed(protocol: type[Protocol], party: int) -> list[int]:
    """Positions of the parts that a party sends to the client: each part from the first party that holds it."""
    return [
        i
        for i, j in enumerate(protocol.parts_of(party))
        if all(j not in protocol.parts_of(q) for q in range(party))
    ]


class Plan:
    """The correlations that set-up and one query use, recorded by running party 0 on meta tensors.

    `tags` and `setup_tags` name the program node that each correlation is for. `columns` names the weights of linear layers: a matrix
    product with their transpose reads them column by column.
    """

    columns: frozenset[str] = frozenset()

    def __init__(self, program: Program, protocol: type[Protocol], fraction_bits: int):
        party = Party(protocol, Counting("party0"), fraction_bits)
        recorder = Recorder(party.transport.ledger)
        with MetaMemo():
            party.begin(program)
            party.share_weights_on_meta()
            party.open_weights(recorder)
            self.setup, self.setup_tags = list(recorder.plan), list(recorder.tags)
            self.weights = multiplied_weights(program) if self.setup else []
            self.columns = frozenset(
                n.args[1].name for n in _of_op(program, "linear") if isinstance(n.args[1], Ref)
            )
            recorder = Recorder(party.transport.ledger)
            party.evaluate(recorder, *party.meta_inputs())
        self.query, self.tags = list(recorder.plan), list(recorder.tags)


def _chunks(plan: Sequence[Correlation]) -> Iterator[range]:
    """Consecutive correlations whose messages are sent together."""
    start, size = 0, 0
    for number, correlation in enumerate(plan):
        size += sum(f.spec.nbytes for f in correlation.derived())
        if size >= _CHUNK_BYTES:
            yield range(start, number + 1)
            start, size = number + 1, 0
    if start < len(plan):
        yield range(start, len(plan))


class Party(Role):
    """A computing party."""

    def __init__(self, protocol: type[Protocol], transport: Transport, fraction_bits: int):
        super().__init__(protocol, transport, fraction_bits)
        self.number = int(transport.role.removeprefix("party"))
        self._stores: deque[Store] = deque()
        self._queries = 0
        self._common: dict[tuple[int, ...], Stream] = {}

    def begin(self, program: Program) -> None:
        self.program = program
        self._constants = self._clear(program, {"constant"}, {})
        self._weights: dict[str, Secret] = {}

    def share_weights_on_meta(self) -> None:
        assert self.program is not None
        for node in _of_op(self.program, "share_weight"):
            self._weights[node.name] = self._meta_secret(node)

    def meta_inputs(self) -> tuple[dict[str, Tensor], dict[str, Secret]]:
        program = self.program
        assert program is not None
        public = {
            n.name: torch.empty(n.shape, dtype=n.dtype, device="meta")
            for n in program.nodes
            if n.op == "input" and n.level == "public"
        }
        return public, {n.name: self._meta_secret(n) for n in _of_op(program, "share_input")}

    def _meta_secret(self, node: Node) -> Secret:
        shares = [
            torch.empty(node.shape, dtype=ring.DTYPE, device="meta")
            for _ in self.protocol.parts_of(self.number)
        ]
        return Secret(shares, _fraction_bits(node, self.fraction_bits))

    def _held_inputs(self, program: Program) -> dict[str, Secret]:
        """Shares of the inputs that the party holds from before."""
        nodes = [n for n in _of_op(program, "share_input") if next(n.references()) in self.held]
        return {n.name: self._meta_secret(n) for n in nodes}

    def setup(self, program: Program, plan: Plan) -> None:
        """Gets its weight shares, agrees on seeds, and opens the weights that are multiplied with, once, under fixed masks."""
        with self.transport.ledger.phase("setup"):
            self.begin(program)
            self._plan, self._tags = plan.query, plan.tags
            self._receive_setup(program)
            store = Store()
            for number, (name, correlation) in enumerate(zip(plan.setup_tags, plan.setup, strict=True)):
                self.transport.ledger.tagged = name
                store.put(correlation, self._expand(correlation, 0, number))
            self.open_weights(store)

    def _receive_setup(self, program: Program) -> None:
        seeds = _seed_specs(self.protocol, self.number)
        nodes = _of_op(program, "share_weight")
        takes = self.protocol.parts - 1 in self.protocol.parts_of(self.number)
        receives = {"owner": [*seeds, *(TensorSpec(n.shape) for n in nodes if takes)]}
        if seeds:
            receives["client"] = list(seeds)
        if self.protocol.has_dealer:
            receives["dealer"] = [_SEED]
        sends = self._common_seeds(receives)
        received = self.transport.exchange(sends, {k: v for k, v in receives.items() if v})
        self._agree(received)
        owner = deque(received.get("owner", []))
        weights = _Joiner(
            self.protocol, self.number, [owner.popleft() for _ in seeds], "weights", self.device
        )
        for index, node in enumerate(nodes):
            self.transport.ledger.tagged = node.name
            message = owner.popleft() if takes else None
            self._weights[node.name] = weights.join(
                node.shape, index, message, _fraction_bits(node, self.fraction_bits)
            )
        self._inputs = _Joiner(self.protocol, self.number, received.get("client", []), "inputs", self.device)
        if self.protocol.has_dealer:
            self._dealer = _stream(received["dealer"][0], f"dealer to party{self.number}")

    def _common_seeds(self, receives: dict[str, list[TensorSpec]]) -> dict[str, list[Tensor]]:
        """Seeds for the groups that this party is the first of; adds those that it gets to `receives`."""
        sends: dict[str, list[Tensor]] = {}
        for group in self._groups():
            if group[0] == self.number:
                seed = _seed_tensor(new_seed(), self.device)
                self._common[group] = self._group_stream(group, seed)
                for other in group[1:]:
                    sends.setdefault(f"party{other}", []).append(seed)
            else:
                receives.setdefault(f"party{group[0]}", []).append(_SEED)
        return sends

    def _agree(self, received: Mapping[str, list[Tensor]]) -> None:
        seeds = {peer: deque(tensors) for peer, tensors in received.items() if peer.startswith("party")}
        for group in self._groups():
            if group[0] != self.number:
                self._common[group] = self._group_stream(group, seeds[f"party{group[0]}"].popleft())

    def _group_stream(self, group: tuple[int, ...], seed: Tensor) -> Stream:
        return _stream(seed, f"common to {group}")

    def _groups(self) -> list[tuple[int, ...]]:
        return [g for g in self.protocol.seed_groups if self.number in g]

    def open_weights(self, source: Recorder | Store) -> None:
        program = self.program
        assert program is not None
        p = self.protocol(self.number, source, self.device, self.fraction_bits)

        async def all_weights() -> None:
            for task in [
                await start(p.weight(name, self._weights[name]), name) for name in multiplied_weights(program)
            ]:
                await task

        Scheduler(self.transport).run(all_weights())

    def _expand(self, correlation: Correlation, query: int, number: int) -> Fields:
        """What this party expands by itself."""
        fields = expand_common(correlation, self.number, self._common, query, number, self.device)
        if self.protocol.has_dealer:
            fields.update(expand(correlation, self.number, self._dealer, query, number, self.device))
        return fields

    def offline(self) -> None:
        """Correlated randomness for one more query."""
        self._queries += 1
        store = Store()
        with self.transport.ledger.phase("offline"):
            p = self.protocol(self.number, store, self.device, self.fraction_bits)
            for i, chunk in enumerate(_chunks(self._plan)):
                self._expand_chunk(p, store, chunk, first=i == 0)
        self._stores.append(store)

    def _expand_chunk(self, p: Protocol, store: Store, chunk: range, first: bool) -> None:
        """`first` chunks take a round to arrive; the dealer's later ones are on their way meanwhile."""
        dealt = self.protocol.has_dealer and self.number == 1
        derived = [f for number in chunk for f in self._plan[number].derived()] if dealt else []
        messages: deque[Tensor] = deque()
        if derived:
            specs = [f.spec for f in derived]
            messages = deque(self.transport.exchange({}, {"dealer": specs}, rounds=int(first))["dealer"])
        for number in chunk:
            self.transport.ledger.tagged = self._tags[number]
            correlation = self._plan[number]
            fields = self._expand(correlation, self._queries, number)
            if dealt:
                fields.update({f.name: messages.popleft() for f in correlation.derived()})
            store.put(correlation, p.prepare(correlation, fields, store.peek, self._weights))

    def online(self) -> None:
        """One query: inputs from the client, the program, output shares to the client."""
        program = self.program
        assert program is not None, "set-up comes first"
        if not self._stores:
            raise RuntimeError("no offline phase has been run for this query")
        query = self._queries - len(self._stores)
        with self.transport.ledger.phase("online"):
            public_nodes = [n for n in program.nodes if n.op == "input" and n.level == "public"]
            nodes = self._inputs_to_share(program)
            takes = self._inputs.takes_message
            specs = [TensorSpec(n.shape, n.dtype) for n in public_nodes] + [
                TensorSpec(n.shape) for n in nodes if takes
            ]
            received = deque(self.transport.exchange({}, {"client": specs})["client"])
            public = {n.name: received.popleft() for n in public_nodes}
            inputs = self._held_inputs(program)
            for index, node in enumerate(nodes):
                message = received.popleft() if takes else None
                number = query * INDICES_PER_QUERY + index
                inputs[node.name] = self._inputs.join(
                    node.shape, number, message, _fraction_bits(node, self.fraction_bits)
                )
            outputs = [
                o for o in self.evaluate(self._stores.popleft(), public, inputs) if isinstance(o, Secret)
            ]
            bits = torch.tensor([o.fraction_bits for o in outputs], dtype=torch.int64, device=self.device)
            shares = [
                o.shares[i].contiguous() for o in outputs for i in _revealed(self.protocol, self.number)
            ]
            self.transport.exchange({"client": [bits, *shares]}, {})

    def evaluate(
        self, source: Recorder | Store, public: Mapping[str, Tensor], inputs: Mapping[str, Secret]
    ) -> list[Any]:
        assert self.program is not None
        p = self.protocol(self.number, source, self.device, self.fraction_bits)
        engine = Engine(self.program, self._weights, self._constants, self.device)
        return Scheduler(self.transport).run(engine.run(p, public, inputs))


class Dealer(Role):
    """Deals correlated randomness for set-up and, query by query, ahead of the data."""

    def setup(self, plan: Plan) -> None:
        with self.transport.ledger.phase("setup"):
            names = party_names(self.protocol)
            seeds = [_seed_tensor(new_seed(), torch.device("cpu")) for _ in names]
            self.transport.exchange({n: [s.to(self.device)] for n, s in zip(names, seeds, strict=True)}, {})
            meta = self.device.type == "meta"
            streams = [
                _stream(None if meta else s, f"dealer to {n}") for n, s in zip(names, seeds, strict=True)
            ]
            self._streams = (streams[0], streams[1])
            self._plan, self._tags, self._queries = plan.query, plan.tags, 0
            self._weights: dict[str, dict[str, Tensor]] = {}
            dealing = Dealing(self._streams, {}, self.device)
            for number, (name, correlation) in enumerate(zip(plan.weights, plan.setup, strict=True)):
                values = dealing.random(correlation, 0, number)
                if name in plan.columns:
                    values = {k: by_columns(v) for k, v in values.items()}
                self._weights[name] = values

    def offline(self) -> None:
        self._queries += 1
        with self.transport.ledger.phase("offline"):
            dealt = Dealing(self._streams, self._weights, self.device).deal(self._plan, self._queries)
            for i, chunk in enumerate(_chunks(self._plan)):
                messages = []
                for number in chunk:
                    self.transport.ledger.tagged = self._tags[number]
                    tensors = next(dealt)
                    self.transport.ledger.tag(self._tags[number]).bytes += nbytes(tensors)
                    messages.extend(tensors)
                if messages:
                    self.transport.exchange({"party1": messages}, {}, rounds=int(i == 0))
