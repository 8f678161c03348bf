"""A program whose bounds and ranges come from many example inputs, with a margin, and the record of what was seen.

    program, certificate = certify(program, batches, margin_bits=2.0, narrow=4.0)

The program's values are then bound to what calibration met times 2^margin_bits (Node.bound), so that it truncates no more than such
values need. What is beyond the margin comes out wrong: certify with inputs that are like the data. Bounds are whole powers of two, part of
the program, and so known to all parties and to the dealer: they tell how large the model's values are, to the next power of two.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import inf
from typing import Any

from secure_eval.magnitudes import bits, promise
from secure_eval.program import Node, Program
from secure_eval.ranges.calibration import Batch, Ranges, calibrate
from secure_eval.ranges.checking import Quantity, RangeError, examine
from secure_eval.ranges.narrowing import narrow_ranges

_SHOWN = 8


@dataclass(frozen=True)
class Entry:
    """One quantity of a site's operations, over all inputs: between what it lay, between what it may lie, and how many times it could
    double (or halve) before it is beyond that. None: not looked at, without a limit, or inside its limits whatever the inputs."""

    site: str
    op: str
    quantity: str
    smallest: float | None
    largest: float
    low: float | None
    high: float | None
    spare_bits: float | None


@dataclass(frozen=True)
class Certificate:
    """What `certify` saw. `program` is the key of the certified program; `narrow` the factor that ranges were narrowed with, if any."""

    program: str
    inputs: int
    margin_bits: float
    fraction_bits: int
    narrow: float | None
    truncated_elements: int
    entries: tuple[Entry, ...]

    @property
    def spare_bits(self) -> float:
        """Of the entry that has least of them."""
        return min((e.spare_bits for e in self.entries if e.spare_bits is not None), default=inf)

    def tightest(self, count: int = _SHOWN) -> list[Entry]:
        """Entries with a limit, those with the fewest bits to spare first."""
        limited = [e for e in self.entries if e.spare_bits is not None]
        return sorted(limited, key=lambda e: (e.spare_bits, e.site, e.op, e.quantity))[:count]

    def summary(self) -> str:
        """One line."""
        narrowed = f", ranges narrowed to a factor of {self.narrow:g}" if self.narrow is not None else ""
        return (
            f"calibration of {self.inputs} inputs, {self.margin_bits:g} bits of margin, {self.fraction_bits} fraction bits{narrowed}: "
            f"{self.spare_bits:.1f} bits to spare or more"
        )

    def __str__(self) -> str:
        lines = [
            f"  {e.spare_bits:5.1f} bits to spare: {e.quantity} {e.largest:.6g} of {e.op}"
            + (f" in {e.site}" if e.site else "")
            for e in self.tightest()
        ]
        return "\n".join([self.summary(), *lines])

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `entries` as rows in the order of `columns`."""
        data = asdict(self)
        rows = [[_short(v) for v in asdict(e).values()] for e in self.entries]
        return {**data, "columns": list(Entry.__dataclass_fields__), "entries": rows}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Certificate:
        """Inverse of to_dict. Raises ValueError where the columns are not those of an entry."""
        columns = list(Entry.__dataclass_fields__)
        if data.get("columns") != columns:
            raise ValueError(f"a certificate with columns {data.get('columns')}; allowed: {columns}")
        fields = {k: v for k, v in data.items() if k not in ("columns", "entries")}
        return cls(**fields, entries=tuple(Entry(*row) for row in data["entries"]))

    def to_json(self) -> str:
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Certificate:
        return cls.from_dict(json.loads(text))


def certify(
    program: Program,
    batches: Sequence[Batch],
    *,
    margin_bits: float = 2.0,
    narrow: float | None = 4.0,
    fraction_bits: int = 16,
    protocol: str = "dealer2pc",
) -> tuple[Program, Certificate]:
    """The program with bounds and ranges for inputs like `batches`, and the certificate that says what they met.

    Args:
        batches: inputs of calls, by name or in order, of the program's shapes; a few hundred that are like the data.
        margin_bits: values may be 2^margin_bits as large as any that was met, at least 2.
        narrow: reciprocals, roots, logarithms and norms are fitted to the arguments that they met, this factor wider on either side; None
            leaves them as they are.
        fraction_bits, protocol: what the program will be run with.

    Raises ValueError for a margin below 1 bit, NotFinite, and RangeError, which lists every value that does not fit.
    """
    if not margin_bits >= 1:
        raise ValueError(f"margin_bits={margin_bits}; allowed: 1 or more")
    seen = calibrate(program, batches)
    captured = program.by_name
    if narrow is not None:
        program = narrow_ranges(program, seen, narrow)
    program = bounded(program, seen, margin_bits, fraction_bits)
    report, quantities = examine(program, seen, fraction_bits, margin_bits, protocol)
    if not report.fits:
        raise RangeError(report)
    certificate = Certificate(
        program.key(),
        len(batches),
        margin_bits,
        fraction_bits,
        narrow,
        report.truncated_elements,
        _entries([replace(q, proven=q.proven or _proven(q, captured)) for q in quantities]),
    )
    return program, certificate


def _proven(quantity: Quantity, captured: Mapping[str, Node]) -> bool:
    """Whether a function's range needs no margin and was not fitted to the inputs: its making proves it."""
    settled = quantity.fraction_bits is None and quantity.margin_low == quantity.margin_high == 1.0
    return settled and captured[quantity.node.name].args == quantity.node.args


def bounded(program: Program, seen: Ranges, margin_bits: float, fraction_bits: int) -> Program:
    """Values bound to 2^margin_bits times the largest that was met, rounded up to a power of two, where that is below the promise.

    Weights are left alone: a bound would tell how large they are, and nothing is cheaper for it.
    """

    def bound(name: str) -> int | None:
        least = bits(seen.nodes[name].largest * 2.0**margin_bits)
        return least if least < promise(fraction_bits) else None

    return program.with_nodes(
        [
            replace(n, bound=bound(n.name))
            if n.level == "secret" and n.op != "share_weight" and n.name in seen.nodes
            else n
            for n in program.nodes
        ]
    )


def _entries(quantities: Sequence[Quantity]) -> tuple[Entry, ...]:
    """Of each site, operation and quantity the node that has least to spare."""
    worst: dict[tuple[str, str, str], Quantity] = {}
    for q in quantities:
        if q.node.op == "share_weight":
            continue
        key = q.node.site, q.node.op, q.name
        if key not in worst or (q.proven, q.spare_bits) < (worst[key].proven, worst[key].spare_bits):
            worst[key] = q
    return tuple(
        Entry(
            *key,
            None if q.fraction_bits is not None else q.smallest,
            q.largest,
            q.low,
            q.high,
            q.spare_bits if q.spare_bits < inf and not q.proven else None,
        )
        for key, q in worst.items()
    )


def _short(value: Any) -> Any:
    """Numbers with six digits: a certificate is read, not computed with."""
    return float(f"{value:.6g}") if isinstance(value, float) else value
