"""Where a program's values are held with how many fraction bits, and what is truncated: from a run of the engine on meta tensors."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch

from secure_eval.correlations.correlation import Recorder
from secure_eval.engine import Engine
from secure_eval.kernels.meta_tensors import MetaMemo
from secure_eval.network.transport import Counting
from secure_eval.parties.roles import Party
from secure_eval.program import Node, Program
from secure_eval.protocols.base import Bits, Protocol, Secret
from secure_eval.protocols.plain import Plain
from secure_eval.scheduler import Scheduler


@dataclass(frozen=True)
class Truncation:
    """`elements` values with `fraction_bits` fraction bits lose `shift` of them, for node `user`. `source` is the node whose value it is,
    None for a value inside a function."""

    user: str
    source: str | None
    elements: int
    fraction_bits: int
    shift: int


@dataclass
class Placement:
    """`fraction_bits` of each secret node's value, as its rule makes it; `widest`: the most of what a node truncates or compares."""

    fraction_bits: dict[str, int] = field(default_factory=dict)
    widest: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    truncations: list[Truncation] = field(default_factory=list)


class _Watched(Plain):
    """Plain arithmetic that notes what is truncated and compared; the same for every protocol, since the engine decides it."""

    placement: Placement
    origins: dict[int, str]
    user: str = ""

    def at(self, user: str) -> _Watched:
        """The same, working for a node."""
        p = _Watched(self.party, self.source, self.device, self.fraction_bits)
        p.placement, p.origins, p.user = self.placement, self.origins, user
        return p

    def _see(self, x: Secret) -> None:
        self.placement.widest[self.user] = max(self.placement.widest[self.user], x.fraction_bits)

    async def truncate(self, x: Secret, bits: int) -> Secret:
        self._see(x)
        source = self.origins.get(id(x))
        self.placement.truncations.append(Truncation(self.user, source, prod(x.shape), x.fraction_bits, bits))
        return await super().truncate(x, bits)

    async def msb(self, x: Secret) -> Bits:
        self._see(x)
        return await super().msb(x)


class _Placing(Engine):
    held: list[Secret]

    def note(self, p: _Watched, name: str, value: Any) -> None:
        if isinstance(value, Secret):
            held = p.placement.fraction_bits.get(name, value.fraction_bits)
            p.placement.fraction_bits[name] = max(held, value.fraction_bits)
            p.origins.setdefault(id(value), name)
            self.held.append(value)  # an id is only good while its object lives

    async def _node(self, p: Protocol, node: Node, *rest: Any) -> Any:
        assert isinstance(p, _Watched)
        result = await super()._node(p.at(node.name), node, *rest)
        self.note(p, node.name, result)
        return result

    async def _settled(self, p: Protocol, node: Node, result: Any) -> Any:
        assert isinstance(p, _Watched)
        self.note(p, node.name, result)
        return await super()._settled(p, node, result)


def place(program: Program, fraction_bits: int) -> Placement:
    """The placement of a program's values at so many fraction bits. Nothing is computed and no weights are read."""
    with MetaMemo(), torch.inference_mode():
        party = Party(_Watched, Counting("party0"), fraction_bits)
        party.begin(program)
        party.share_weights_on_meta()
        public, inputs = party.meta_inputs()
        p = _Watched(0, Recorder(), party.device, fraction_bits)
        p.placement, p.origins = Placement(), {}
        engine = _Placing(program, party._weights, party._constants, party.device)
        engine.held = []
        for name, value in {**inputs, **party._weights}.items():
            engine.note(p, name, value)
        Scheduler(party.transport).run(engine.run(p, public, inputs))
    return p.placement
