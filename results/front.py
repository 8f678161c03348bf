"""The figure of the search: every architecture it tried, the front, the baselines and the choice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from results import wording
from results.record import FrontPoint, Record
from results.style import BASELINE, CHOSEN, STUDENT, TRIED, Figure, finish, log_axis


def front(record: Record) -> Figure | None:
    """Predicted seconds against the proxy score (KL to the teacher). None if the record has no priced point.

    The front is drawn over all that was tried; what lies beyond the recipe's limits is drawn open.
    """
    network = str(record.secure.get("network", ""))
    known = {point.id: point for point in [*record.trials, *record.front]}
    points = [p for p in known.values() if "kl" in p.proxy and network in p.predicted.seconds]
    if not points:
        return None
    positive = [p.proxy["kl"] for p in points if p.proxy["kl"] > 0]
    floor = min(positive) / 2 if positive else 1e-4  # a log axis has no zero; the hover tells the true value

    def x(point: FrontPoint) -> float:
        return point.predicted.seconds[network].total

    def y(point: FrontPoint) -> float:
        return max(point.proxy["kl"], floor)

    def trace(chosen: Sequence[FrontPoint], name: str, mode: str, **style: Any) -> go.Scatter:
        ordered = sorted(chosen, key=x)
        return go.Scatter(
            x=[x(p) for p in ordered],
            y=[y(p) for p in ordered],
            name=name,
            mode=mode,
            text=[_hover(record, p, x(p)) for p in ordered],
            hovertemplate="%{text}<extra></extra>",
            **style,
        )

    right = [p for p in points if p.dropped is None]  # what breaks in fixed point is no front
    best = sorted(nondominated([(x(p), p.proxy["kl"], p) for p in right]), key=x)
    ids = {p.id for p in best} | {p.id for p in points if p.name}
    tried = [p for p in points if p.id not in ids]
    figure = go.Figure()
    if tried:
        figure.add_trace(
            trace(tried, "tried", "markers", marker={"size": 5, "color": TRIED, "opacity": 0.45})
        )
    open_ones = [not p.feasible for p in best]
    marker = {
        "size": 8,
        "color": STUDENT,
        "symbol": ["circle-open" if is_open else "circle" for is_open in open_ones],
        "line": {"width": 1.5},
    }
    line = {"color": STUDENT, "width": 1.5, "shape": "hv"}
    name = "front (open: beyond the limits)" if any(open_ones) else "front"
    figure.add_trace(trace(best, name, "lines+markers", marker=marker, line=line))
    trained = {model.id for model in record.candidates}
    distilled = [p for p in points if p.id in trained and p.id != record.chosen]
    if distilled:
        ring = {"size": 14, "color": STUDENT, "symbol": "circle-open", "line": {"width": 2}}
        figure.add_trace(trace(distilled, "distilled", "markers", marker=ring))
    named = [p for p in points if p.name]
    if named:
        diamond = {"size": 12, "color": BASELINE, "symbol": "diamond"}
        figure.add_trace(trace(named, "named baselines", "markers", marker=diamond))
    for point in named:
        place = {"x": math.log10(x(point)), "y": math.log10(y(point)), "yshift": 15, "showarrow": False}
        figure.add_annotation(text=point.name, **place)
    star = [p for p in points if p.id == record.chosen]
    if star:
        figure.add_trace(
            trace(star, "chosen", "markers", marker={"size": 19, "color": CHOSEN, "symbol": "star"})
        )
    figure.update_xaxes(title=f"predicted seconds a query, {wording.network_title(network)}")
    figure.update_yaxes(title="KL to the teacher, before training")
    log_axis(figure, "xaxis", [x(p) for p in points], wording.seconds)
    log_axis(figure, "yaxis", [y(p) for p in points], wording.number)
    limit = record.limits.get("latency_s")
    if isinstance(limit, int | float) and not isinstance(limit, bool):
        figure.add_vline(x=float(limit), line={"dash": "dot", "color": TRIED, "width": 1.5})
    return finish(figure, height=460)


def nondominated(points: Sequence[tuple[float, float, FrontPoint]]) -> list[FrontPoint]:
    """Points (cost, divergence, point) that no other one beats in both; of equal ones the first."""
    kept: list[FrontPoint] = []
    least = math.inf
    for _, divergence, point in sorted(points, key=lambda entry: entry[:2]):
        if divergence < least:
            kept.append(point)
            least = divergence
    return kept


def _hover(record: Record, point: FrontPoint, seconds: float) -> str:
    network = wording.network_title(str(record.secure.get("network", "")))
    made_of = wording.architecture_summary(point.architecture, record.task.get("sites", []))
    online = point.predicted.online
    fixed = point.fixed_point.get("agreement")
    held = "" if fixed is None else f"{fixed:.1%} as in float in fixed point<br>"
    return (
        f"<b>{point.name or point.id}</b><br>KL {point.proxy['kl']:.4g}<br>"
        f"{wording.seconds(seconds)} on {network} · {wording.size(online.bytes)} · {online.rounds:,} rounds<br>"
        + held
        + made_of.replace(" · ", "<br>")
    )
