"""Tables of a survey, in Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from benchmarks.coverage.trial import CAPTURED, OUTCOMES, Found


def report(found: Sequence[Found], before: Sequence[Found] = ()) -> str:
    """Outcomes by kind of head, with an earlier survey beside them, missing operations, and the reason of every class that is not right."""
    return "\n".join([*_by_head(found, before), "", *_operations(found), *_reasons(found)])


def _by_head(found: Sequence[Found], before: Sequence[Found]) -> list[str]:
    earlier = ["right before"] if before else []
    columns = ["head", "tried", "captured", "right", *earlier, "right of those built", *OUTCOMES[1:]]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for head in dict.fromkeys(f.head for f in found):
        part = [f for f in found if f.head == head]
        counts = Counter(f.outcome for f in part)
        built = len(part) - counts["build"]
        share = f"{100 * counts['right'] / built:.0f} %" if built else "none"
        names = {f.name for f in part}
        old = [f for f in before if f.head == head and f.name in names]
        then = [f"{sum(f.outcome == 'right' for f in old)} of {len(old)}"] if before else []
        cells = [head, len(part), sum(counts[o] for o in CAPTURED), counts["right"], *then, share]
        lines.append(f"| {' | '.join(map(str, [*cells, *(counts[o] for o in OUTCOMES[1:])]))} |")
    return lines


def _operations(found: Sequence[Found]) -> list[str]:
    alone, others, where = Counter[str](), Counter[str](), dict[str, list[str]]()
    for f in found:
        for operation in f.operations:
            (alone if len(f.operations) == 1 else others)[operation] += 1
            where.setdefault(operation, []).append(f.name)
    lines = ["| missing operation | unlocks alone | with others | for example |", "|---|---|---|---|"]
    for operation in sorted(where, key=lambda o: (-alone[o], -others[o], o)):
        lines.append(
            f"| {operation} | {alone[operation]} | {others[operation]} | {', '.join(where[operation][:3])} |"
        )
    return lines


def _reasons(found: Sequence[Found]) -> list[str]:
    lines = []
    for outcome in OUTCOMES[1:]:
        part = [f for f in found if f.outcome == outcome]
        if part:
            lines += ["", f"{outcome}:", ""]
            lines += [f"* {f.name} ({f.head}): {_reason(f)}" for f in part]
    return lines


def _reason(f: Found) -> str:
    error = (
        f"error {f.error:.2g}, reference {f.meaning:.2g}"
        if f.error is not None and f.meaning is not None
        else ""
    )
    return "; ".join(p for p in (error, f.reason or "; ".join(f.operations)) if p) or "unknown"
