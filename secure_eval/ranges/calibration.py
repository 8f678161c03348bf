"""What values a program meets on example inputs, from the float64 reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor, nn

from secure_eval.capture import capture
from secure_eval.operations import OPERATIONS
from secure_eval.program import Program
from secure_eval.reference import values

Batch = Sequence[Tensor] | Mapping[str, Tensor]


class NotFinite(ValueError):
    """An example input makes the program itself compute an infinity or no number."""


@dataclass(frozen=True)
class Extent:
    """The smallest and the largest value of a quantity over all elements and inputs seen."""

    smallest: float
    largest: float

    @classmethod
    def of(cls, x: Tensor) -> Extent:
        return cls(float(x.min()), float(x.max()))

    def __or__(self, other: Extent) -> Extent:
        return Extent(min(self.smallest, other.smallest), max(self.largest, other.largest))


@dataclass(frozen=True)
class Observed:
    """What one secret node met: its largest magnitude, and the extents of the quantities that its operation looks at."""

    op: str
    site: str
    largest: float
    quantities: Mapping[str, Extent] = field(default_factory=dict)

    def __or__(self, other: Observed) -> Observed:
        names = dict.fromkeys([*self.quantities, *other.quantities])
        joined = {
            name: self.quantities.get(name, other.quantities.get(name))
            if name not in self.quantities or name not in other.quantities
            else self.quantities[name] | other.quantities[name]
            for name in names
        }
        return Observed(
            self.op,
            self.site,
            max(self.largest, other.largest),
            {k: v for k, v in joined.items() if v is not None},
        )


@dataclass(frozen=True)
class Ranges:
    """Node name -> what it met, over `batches` example inputs."""

    nodes: Mapping[str, Observed]
    batches: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"batches": self.batches, "nodes": {name: asdict(o) for name, o in self.nodes.items()}}


def calibrate(
    model: nn.Module | Program, batches: Sequence[Batch], *, finite: bool = True, **capturing: Any
) -> Ranges:
    """Runs the float64 reference over example inputs and keeps, node by node, the largest magnitudes and arguments.

    Args:
        model: a captured program, or a module, which is captured for the first batch (`capturing` goes to `capture`).
        batches: inputs of calls, by name or in order; all of the program's shapes.
        finite: refuse values that are infinite or no number; else they are kept as such, and no check will find that they fit.

    Weights are taken to float64 once, so that a batch after the first costs a forward pass. Raises ValueError without a batch or for
    inputs that do not fit, and NotFinite, which names the node.
    """
    if not batches:
        raise ValueError("calibration needs at least one batch of inputs")
    program = model if isinstance(model, Program) else capture(model, batches[0], **capturing)
    nodes: dict[str, Observed] = {}
    kept: dict[str, Any] | None = {} if len(batches) > 1 else None
    for batch in batches:
        for node, args, value in values(program, batch, kept):
            if node.level != "secret" or not value.numel():
                continue
            valid = OPERATIONS[node.op].valid
            extents = {k: Extent.of(v) for k, v in valid.quantities(*args).items()} if valid else {}
            met = Observed(node.op, node.site, float(value.abs().max()), extents)
            if finite and not met.largest < float("inf"):
                raise NotFinite(f"{node!r} is {met.largest} in floating point on an example input")
            nodes[node.name] = nodes[node.name] | met if node.name in nodes else met
    return Ranges(nodes, len(batches))
