"""The figures of a report, as plotly specifications without colours of their own for text and grid.

A figure with nothing to show is None and is left out of the page: an empty plot says less than none.
The page's script sets fonts and grid from the page's own light or dark palette.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import plotly.graph_objects as go

from results import wording
from results.front import front
from results.record import Candidate, Phase, Record
from results.style import BASELINE, CHOSEN, STUDENT, TEACHER, Figure, finish, log_axis

MAX_TRACES = 9
"""Components shown in one stacked bar; the smallest are summed as "other"."""


AROUND = 0.05
"""Of an axis of shares that are all equal: so much above and below them."""


def all_figures(record: Record) -> dict[str, Figure]:
    """Every figure that this record has something to show in, by its name in the page."""
    makers: dict[str, Callable[[Record], Figure | None]] = {
        "front": front,
        "trained": trained,
        "operations": operations,
        "layers": layers,
        "training": training,
    }
    made = {name: make(record) for name, make in makers.items()}
    return {name: figure for name, figure in made.items() if figure is not None}


def trained(record: Record) -> Figure | None:
    """The models that were trained whole: predicted seconds against test accuracy, with its standard
    error."""
    network = str(record.secure.get("network", ""))
    examples = record.task.get("examples", {}).get("test")
    figure = go.Figure()
    for model in record.models():
        x, y = wording.predicted_total(model, network), model.accuracy.test
        split = "test"
        if y is None:  # only models that were verified have seen the test split
            y, split = model.accuracy.validation, "validation"
            examples_here = record.task.get("examples", {}).get("validation")
        else:
            examples_here = examples
        if x is None or y is None:
            continue
        error = math.sqrt(y * (1 - y) / examples_here) if examples_here and 0 <= y <= 1 else None
        colour, symbol, extent = _look(record, model)
        figure.add_trace(
            go.Scatter(
                x=[x],
                y=[y],
                name=model.title + ("" if split == "test" else " (validation)"),
                mode="markers",
                marker={"size": extent, "color": colour, "symbol": symbol},
                error_y={"type": "data", "array": [error], "thickness": 1.2, "width": 4} if error else None,
                hovertemplate=(
                    f"<b>{model.title}</b><br>{split} {wording.metric_name(record)} "
                    f"{wording.metric(record, y)}"
                    f"<br>{wording.seconds(x)} on {wording.network_title(network)}<extra></extra>"
                ),
            )
        )
    if not figure.data:
        return None
    figure.update_xaxes(title=f"predicted seconds a query, {wording.network_title(network)}")
    log_axis(figure, "xaxis", [x for trace in figure.data for x in trace.x], wording.seconds)
    percentages = wording.metric_name(record) in {"accuracy", "f1"}
    figure.update_yaxes(
        title=f"{wording.metric_name(record)}, plaintext", tickformat=".1%" if percentages else None
    )
    heights = [y for trace in figure.data for y in trace.y]
    if percentages and max(heights) == min(heights):
        # Left to itself an axis of equal values runs from 0 to 200 %.
        figure.update_yaxes(range=[min(heights) - AROUND, max(heights) + AROUND])
    return finish(figure, height=400)


def operations(record: Record) -> Figure | None:
    """Online bytes, and by a switch rounds, of the headline models, stacked by kind of operation."""
    models = [m for m in record.headline() if m.predicted and m.predicted.by_operation]
    if not models:
        return None
    groups = [{name: p for name, p in m.predicted.by_operation.items()} for m in models if m.predicted]
    return _stacked([m.title for m in models], groups, horizontal=True)


def layers(record: Record) -> Figure | None:
    """Online cost of the chosen student (else the first headline model) by layer, stacked by the part of the
    layer."""
    rows = [m for m in record.headline() if m.predicted and m.predicted.by_site]
    if not rows or rows[-1].predicted is None:
        return None
    model = rows[-1]
    table: dict[str, dict[str, Phase]] = {}
    for site, phase in (model.predicted.by_site if model.predicted else {}).items():
        layer, part = split_site(site)
        cell = table.setdefault(layer, {})
        before = cell.get(part, Phase(bytes=0, rounds=0))
        cell[part] = Phase(bytes=before.bytes + phase.bytes, rounds=before.rounds + phase.rounds)
    # Program order: what comes before the layers stands before them, and the head after.
    return _stacked(list(table), list(table.values()), horizontal=False)


def training(record: Record) -> Figure | None:
    """Validation metric over the epochs of each trained model, its stages in a row."""
    figure = go.Figure()
    colours = iter(wording.PALETTE * 4)
    for model in record.models():
        points = [point for point in model.training if point.validation is not None]
        if not points:
            continue
        figure.add_trace(
            go.Scatter(
                x=[point.epoch for point in points],
                y=[point.validation for point in points],
                name=model.title,
                mode="lines+markers",
                line={"color": next(colours), "width": 2},
                text=[point.stage for point in points],
                hovertemplate=(
                    f"<b>{model.title}</b><br>epoch %{{x:.2f}} (%{{text}})<br>%{{y:.4f}}<extra></extra>"
                ),
            )
        )
    if not figure.data:
        return None
    percentages = wording.metric_name(record) in {"accuracy", "f1"}
    figure.update_xaxes(title="epochs of its own training")
    figure.update_yaxes(
        title=f"validation {wording.metric_name(record)}", tickformat=".0%" if percentages else None
    )
    return finish(figure, height=380)


def split_site(site: str) -> tuple[str, str]:
    """("layer 3", "attention.self.softmax") of a module path; sites outside any layer group under their first
    name."""
    match = re.search(r"(?:^|\.)(\d+)(?:\.|$)", site)
    if match is None:
        parts = site.split(".")
        return (parts[1] if len(parts) > 1 and len(parts[0]) > 0 else parts[0] or "inputs"), parts[
            -1
        ] or "inputs"
    return f"layer {match.group(1)}", site[match.end() :] or "layer"


def _stacked(labels: list[str], groups: list[dict[str, Phase]], *, horizontal: bool) -> Figure | None:
    """A stacked bar for each label; traces of bytes and of rounds, one set shown at a time."""
    totals: dict[str, int] = {}
    for group in groups:
        for name, phase in group.items():
            totals[name] = totals.get(name, 0) + phase.bytes
    names = sorted(totals, key=lambda name: -totals[name])
    shown = names if len(names) <= MAX_TRACES else names[: MAX_TRACES - 1]
    figure = go.Figure()
    units: tuple[tuple[str, float], ...] = (("bytes", 1e-6), ("rounds", 1.0))
    for unit, scale in units:
        for position, name in enumerate([*shown, *(["other"] if len(shown) < len(names) else [])]):
            members = [name] if name in totals and name in shown else [n for n in names if n not in shown]
            values = [scale * sum(getattr(group[m], unit) for m in members if m in group) for group in groups]
            text = [wording.size(v / scale) if unit == "bytes" else f"{v:,.0f} rounds" for v in values]
            figure.add_trace(
                go.Bar(
                    x=values if horizontal else labels,
                    y=labels if horizontal else values,
                    orientation="h" if horizontal else "v",
                    name=name,
                    marker={"color": wording.PALETTE[position % len(wording.PALETTE)], "line": {"width": 0}},
                    customdata=text,
                    hovertemplate=(
                        f"<b>%{{{'y' if horizontal else 'x'}}}</b><br>{name}: %{{customdata}}<extra></extra>"
                    ),
                    visible=unit == "bytes",
                    meta=unit,
                )
            )
    if not totals or not any(totals.values()):
        return None
    figure.update_layout(barmode="stack", bargap=0.35)
    if horizontal:
        figure.update_xaxes(title="online MB sent by one party")
        figure.update_yaxes(autorange="reversed")
    else:
        figure.update_yaxes(title="online MB sent by one party")
    made = finish(figure, height=130 + 62 * len(labels) if horizontal else 400)
    made["units"] = {"axis": "xaxis" if horizontal else "yaxis", "bytes": "online MB sent by one party"}
    made["units"]["rounds"] = "online rounds (parts that share a round each count it)"
    return made


def _look(record: Record, model: Candidate) -> tuple[str, str, int]:
    if model.id == record.chosen:
        return CHOSEN, "star", 18
    if model.id == record.teacher.id:
        return TEACHER, "square", 12
    return (BASELINE, "diamond", 13) if model.id in record.baselines else (STUDENT, "circle", 11)
