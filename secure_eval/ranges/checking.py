"""Whether what a program met fits fixed point: every value in the ring, every argument in its function's range."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import inf, log2, nextafter
from typing import Any

from secure_eval import protocols, ring
from secure_eval.magnitudes import own_limit, proven, with_bounds
from secure_eval.operations import OPERATIONS
from secure_eval.program import Node, Program
from secure_eval.ranges.calibration import Ranges
from secure_eval.ranges.placement import Placement, place

FRACTION_BITS = range(8, 21)
"""What an engine can be asked for."""


@dataclass(frozen=True)
class Violation:
    """`value` of a quantity of a node is beyond what is allowed, margin included."""

    node: str
    op: str
    site: str
    quantity: str
    value: float
    allowed: str

    def __str__(self) -> str:
        where = f" in {self.site}" if self.site else ""
        return f"{self.node} ({self.op}{where}): {self.quantity} {self.value:.6g}, allowed {self.allowed}"


@dataclass(frozen=True)
class Report:
    """The outcome of a check. `headroom_bits` is what is left of the ring above the largest value anywhere, before the margin.

    `truncated_elements` are those of one query; `expected_failures` how many of them come out wrong by more than a unit, an upper bound
    from the protocol's stated probability (values inside functions are taken to be as large as the margin allows).
    """

    protocol: str
    fraction_bits: int
    margin_bits: float
    batches: int
    violations: tuple[Violation, ...]
    headroom_bits: float
    truncated_elements: int
    expected_failures: float

    @property
    def fits(self) -> bool:
        return not self.violations

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {**asdict(self), "violations": [asdict(v) for v in self.violations], "fits": self.fits}

    def __str__(self) -> str:
        head = (
            f"{self.fraction_bits} fraction bits, {self.margin_bits:g} bits of margin, {self.batches} batch(es), {self.protocol}: "
            + ("everything fits" if self.fits else f"{len(self.violations)} value(s) do not fit")
        )
        lines = [f"  {v}" for v in self.violations]
        tail = (
            f"  {self.headroom_bits:.1f} bits of the ring above the largest value; {self.truncated_elements} elements truncated a query, "
            f"{self.expected_failures:.3g} failures expected"
        )
        return "\n".join([head, *lines, tail])


class RangeError(ValueError):
    """Values of an example do not fit. `report` lists them all."""

    def __init__(self, report: Report):
        self.report = report
        super().__init__(str(report))


def check(
    program: Program,
    ranges: Ranges,
    fraction_bits: int = 16,
    margin_bits: float = 2.0,
    protocol: str = "dealer2pc",
) -> Report:
    """Compares what `calibrate` saw with what the engine allows at so many fraction bits.

    Every value has to stay below its bound (magnitudes.py), and below what the ring holds with the fraction bits that the engine makes it
    with; every argument has to be inside its function's range; all by a factor 2^margin_bits. A bound or a range that was proven at
    capture, certified or narrowed by calibration has no margin here: the sum of a softmax is between 1 and its length whatever the input,
    and calibration has left one of its own.

    Raises ValueError where `ranges` are those of another program.
    """
    return examine(program, ranges, fraction_bits, margin_bits, protocol)[0]


@dataclass(frozen=True)
class Quantity:
    """What a node met of one quantity, and between what that has to lie: None for no limit."""

    node: Node
    name: str
    smallest: float
    largest: float
    low: float | None
    high: float | None
    margin_low: float = 1.0
    margin_high: float = 1.0
    fraction_bits: int | None = None
    """Of what the ring holds; `high` is then no limit that may be reached."""
    proven: bool = False
    """Between its limits whatever the inputs."""

    @property
    def spare_bits(self) -> float:
        """How many times the value could double (or halve) before it is beyond its limit."""
        below = inf if self.low is None or self.low <= 0 else _log2(self.smallest) - _log2(self.low)
        above = inf if self.high is None else _log2(self.high) - _log2(self.largest)
        return min(below, above)

    def violations(self) -> Iterator[Violation]:
        n, name = self.node, self.name
        if self.fraction_bits is not None:
            assert self.high is not None
            if not self.largest * self.margin_high < self.high:
                allowed = (
                    f"below 2^{_log2(self.high / self.margin_high):g} with {self.fraction_bits} fraction bits"
                )
                yield Violation(n.name, n.op, n.site, name, self.largest, allowed)
            return
        if self.low is not None and not self.smallest >= self.low * self.margin_low * (1 - 1e-9):
            allowed = f"at least {self.low * self.margin_low:.6g}"
            yield Violation(n.name, n.op, n.site, f"smallest {name}", self.smallest, allowed)
        if self.high is not None and not self.largest <= self.high / self.margin_high * (1 + 1e-9):
            allowed = f"at most {self.high / self.margin_high:.6g}"
            yield Violation(n.name, n.op, n.site, f"largest {name}", self.largest, allowed)


def examine(
    program: Program, ranges: Ranges, fraction_bits: int, margin_bits: float, protocol: str
) -> tuple[Report, list[Quantity]]:
    """The report of a check, and all that was checked."""
    missing = [
        n.name
        for n in program.nodes
        if n.level == "secret" and n.name not in ranges.nodes and 0 not in n.shape
    ]
    if missing:
        raise ValueError(f"calibrated for another program: nothing was seen of {', '.join(missing[:5])}")
    placement = place(program, fraction_bits)
    bounds, sure = with_bounds(program, fraction_bits).by_name, proven(program)
    found: list[Quantity] = []
    implied: list[Violation] = []
    headroom = float(ring.VALUE_BITS)
    for node in program.nodes:
        if node.level != "secret" or node.name not in ranges.nodes:
            continue
        bound = bounds[node.name].bound
        assert bound is not None
        follows = bound < own_limit(node, fraction_bits)
        settled = follows or node.bound == bound or sure.get(node.name, inf) <= bound
        for name, value, bits in _ring_values(node, ranges, placement):
            limit = ring.VALUE_BITS - bits
            headroom = min(headroom, limit - _log2(value))
            own = name == MAGNITUDE
            margin = 1.0 if own and settled else 2.0**margin_bits
            high = 2.0**limit
            if own:  # a bound may be reached: a bit is 1
                high = min(high, 2.0**bound * (1 + 1e-9))
            always = own and sure.get(node.name, inf) <= bound
            quantity = Quantity(node, name, 0.0, value, None, high, 1.0, margin, bits, always)
            found.append(quantity)
            if own and follows:
                implied += quantity.violations()
        found += _arguments(node, ranges, fraction_bits, margin_bits)
    violations = [v for q in found for v in q.violations()]
    # A bound that follows from those of operands is only passed where one of these, or an argument, is beyond its own: which is named.
    violations = [v for v in violations if v not in implied] or violations
    elements, failures = _truncations(ranges, placement, margin_bits, protocol)
    report = Report(
        protocol,
        fraction_bits,
        margin_bits,
        ranges.batches,
        tuple(violations),
        headroom,
        elements,
        failures,
    )
    return report, found


MAGNITUDE = "magnitude"
"""Of a node's own value."""


def _log2(value: float) -> float:
    return log2(value) if value > 0 else -inf if value <= 0 else inf


def _ring_values(node: Node, ranges: Ranges, placement: Placement) -> Iterator[tuple[str, float, int]]:
    """What of a node the ring has to hold: quantity, magnitude, fraction bits."""
    seen, bits = ranges.nodes[node.name], placement.fraction_bits.get(node.name, 0)
    yield MAGNITUDE, seen.largest, bits
    valid = OPERATIONS[node.op].valid
    limited = valid.limits(node, 16) if valid else {}
    for name, extent in seen.quantities.items():
        if name not in limited:
            yield name, extent.largest, max(bits, placement.widest.get(node.name, 0))


def _arguments(node: Node, ranges: Ranges, fraction_bits: int, margin_bits: float) -> Iterator[Quantity]:
    """What a node's operation has a range for."""
    valid, seen = OPERATIONS[node.op].valid, ranges.nodes[node.name]
    if valid is None:
        return
    for name, (low, high) in valid.limits(node, fraction_bits).items():
        extent = seen.quantities[name]
        least, most = (2.0**margin_bits if needed else 1.0 for needed in valid.margins(node, name))
        yield Quantity(node, name, extent.smallest, extent.largest, low, high, least, most)


def _truncations(
    ranges: Ranges, placement: Placement, margin_bits: float, protocol: str
) -> tuple[int, float]:
    cls = protocols.get(protocol)
    elements, failures = 0, 0.0
    for t in placement.truncations:
        seen = ranges.nodes.get(t.source or "")
        bits = (
            nextafter(ring.VALUE_BITS - margin_bits, 0)
            if seen is None
            else _log2(seen.largest) + t.fraction_bits
        )
        elements += t.elements
        failures += t.elements * cls.truncation_failure(bits, t.shift)
    return elements, failures


def choose_fraction_bits(
    program: Program, ranges: Ranges, margin_bits: float = 2.0, protocol: str = "dealer2pc"
) -> Report:
    """The report of the most fraction bits, 8 to 20, at which everything fits; RangeError with that of the fewest where nothing does."""
    for bits in reversed(FRACTION_BITS):
        report = check(program, ranges, bits, margin_bits, protocol)
        if report.fits:
            return report
    raise RangeError(report)
