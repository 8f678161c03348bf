"""Tables of a survey, in Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from benchmarks.coverage.trial import CAPTURED, OUTCOMES, Found

KINDS = {
    "text": ("sequence", "masked", "tokens", "questions", "causal", "embedding"),
    "encoder-decoder": ("seq2seq",),
    "image": ("image", "image embedding"),
    "audio": ("audio", "speech"),
}
"""Heads by what their models take."""


def report(found: Sequence[Found], before: Sequence[Found] = ()) -> str:
    """Outcomes by head and by kind, with an earlier survey beside them, missing operations, and the reason of every class not right."""
    heads = {f.head: (f.head,) for f in found}
    kinds = {k: v for k, v in KINDS.items() if heads.keys() & set(v)}
    tables = [line for groups in (heads, kinds) for line in [*_counted(groups, found, before), ""]]
    return "\n".join([*tables, *_operations(found), *_reasons(found)])


def _counted(
    groups: Mapping[str, Sequence[str]], found: Sequence[Found], before: Sequence[Found]
) -> list[str]:
    """Classes of each group of heads: how many were tried, built, captured and right; then the same of those that were tried before."""
    earlier = ["tried before", "built", "captured", "right"] if before else []
    columns = ["head", "tried", "built", "captured", "right", "right of those built", *earlier]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for group, heads in groups.items():
        part = [f for f in found if f.head in heads]
        names = {(f.head, f.name) for f in part}
        tried, built, captured, right = _counts(part)
        share = f"{100 * right / built:.0f} %" if built else "none"
        then = _counts([f for f in before if (f.head, f.name) in names]) if before else ()
        lines.append(f"| {' | '.join(map(str, [group, tried, built, captured, right, share, *then]))} |")
    return lines


def _counts(part: Sequence[Found]) -> tuple[int, int, int, int]:
    counts = Counter(f.outcome for f in part)
    return len(part), len(part) - counts["build"], sum(counts[o] for o in CAPTURED), counts["right"]


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
