"""The figures of a report, as plotly specifications without colours of their own for text and grid.

A figure with nothing to show is None and is left out of the page: an empty plot says less than none.
The page's script sets fonts and grid from the page's own light or dark palette.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

import plotly.graph_objects as go

from results import wording
from results.record import Candidate, FrontPoint, Phase, Record

CHOSEN, TEACHER, BASELINE, STUDENT, TRIED = "#2f9e77", "#d8574f", "#e0912f", "#3b7dd8", "#8a8f98"

MAX_TRACES = 9
"""Components shown in one stacked bar; the smallest are summed as "other"."""

Figure = dict[str, Any]


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


def front(record: Record) -> Figure | None:
    """Every architecture the search tried: predicted seconds against the proxy score (KL to the teacher)."""
    network = str(record.secure.get("network", ""))
    sites = record.task.get("sites", [])
    known = {point.id: point for point in [*record.trials, *record.front]}
    points = [p for p in known.values() if "kl" in p.proxy and network in p.predicted.seconds]
    if not points:
        return None
    positive = [p.proxy["kl"] for p in points if p.proxy["kl"] > 0]
    floor = min(positive) / 2 if positive else 1e-4  # a log axis has no zero; the hover tells the true value

    def trace(chosen: list[FrontPoint], name: str, mode: str, **style: Any) -> go.Scatter:
        ordered = sorted(chosen, key=lambda p: p.predicted.seconds[network].total)
        text = [
            f"<b>{p.name or p.id}</b><br>KL {p.proxy['kl']:.4g}"
            f"<br>{wording.seconds(p.predicted.seconds[network].total)} on {network.upper()}"
            f" · {wording.size(p.predicted.online.bytes)} · {p.predicted.online.rounds:,} rounds<br>"
            + wording.architecture_summary(p.architecture, sites).replace(" · ", "<br>")
            for p in ordered
        ]
        return go.Scatter(
            x=[p.predicted.seconds[network].total for p in ordered],
            y=[max(p.proxy["kl"], floor) for p in ordered],
            name=name,
            mode=mode,
            text=text,
            hovertemplate="%{text}<extra></extra>",
            **style,
        )

    trained_ids = {model.id for model in record.candidates}
    named = [p for p in points if p.name]
    on_front = [p for p in points if p.on_front]
    tried = [p for p in points if not p.on_front and not p.name]
    figure = go.Figure()
    if tried:
        figure.add_trace(trace(tried, "tried", "markers", marker={"size": 5, "color": TRIED, "opacity": 0.4}))
    if on_front:
        style = {
            "marker": {"size": 7, "color": STUDENT},
            "line": {"color": STUDENT, "width": 1.5, "shape": "hv"},
        }
        figure.add_trace(trace(on_front, "front", "lines+markers", **style))
    distilled = [p for p in points if p.id in trained_ids and p.id != record.chosen]
    if distilled:
        ring = {"size": 13, "color": STUDENT, "symbol": "circle-open", "line": {"width": 2}}
        figure.add_trace(trace(distilled, "distilled", "markers", marker=ring))
    if named:
        diamond = {"size": 12, "color": BASELINE, "symbol": "diamond"}
        labelled = trace(named, "named baselines", "markers", marker=diamond)
        figure.add_trace(labelled)
        for point, x, y in zip(
            sorted(named, key=lambda p: p.predicted.seconds[network].total),
            labelled.x,
            labelled.y,
            strict=True,
        ):
            place = {"x": math.log10(x), "y": math.log10(y), "yshift": 15, "showarrow": False}
            figure.add_annotation(text=point.name, **place)
    star = [p for p in points if p.id == record.chosen]
    if star:
        marker = {"size": 19, "color": CHOSEN, "symbol": "star"}
        figure.add_trace(trace(star, "chosen", "markers", marker=marker))
    figure.update_xaxes(title=f"predicted seconds a query, {network.upper()}")
    figure.update_yaxes(title="KL to the teacher, before training")
    _log_axis(figure, "xaxis", [p.predicted.seconds[network].total for p in points], wording.seconds)
    _log_axis(figure, "yaxis", [max(p.proxy["kl"], floor) for p in points], wording.number)
    limit = record.limits.get("latency_s")
    if isinstance(limit, int | float) and not isinstance(limit, bool):
        figure.add_vline(x=float(limit), line={"dash": "dot", "color": TRIED, "width": 1.5})
    return _finish(figure, height=460)


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
                    f"<br>{wording.seconds(x)} on {network.upper()}<extra></extra>"
                ),
            )
        )
    if not figure.data:
        return None
    figure.update_xaxes(title=f"predicted seconds a query, {network.upper()}")
    _log_axis(figure, "xaxis", [x for trace in figure.data for x in trace.x], wording.seconds)
    percentages = wording.metric_name(record) in {"accuracy", "f1"}
    figure.update_yaxes(
        title=f"{wording.metric_name(record)}, plaintext", tickformat=".1%" if percentages else None
    )
    return _finish(figure, height=400)


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
    return _finish(figure, height=380)


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
    made = _finish(figure, height=130 + 62 * len(labels) if horizontal else 400)
    made["units"] = {"axis": "xaxis" if horizontal else "yaxis", "bytes": "online MB sent by one party"}
    made["units"]["rounds"] = "online rounds (parts that share a round each count it)"
    return made


def _log_axis(figure: go.Figure, axis: str, values: list[float], word: Callable[[float], str]) -> None:
    """A log axis over positive `values` with a margin, ticks at 1-2-5 steps (decades when wide) worded by
    `word`."""
    low, high = min(values), max(values)
    margin = 0.06 * max(math.log10(high / low), 0.3)
    low, high = low * 10**-margin, high * 10**margin
    steps = (
        (1,)
        if math.log10(high / low) > 3
        else (1, 2, 5)
        if math.log10(high / low) > 0.8
        else (1, 1.5, 2, 3, 4, 5, 7)
    )
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [
        step * 10.0**decade for decade in decades for step in steps if low <= step * 10.0**decade <= high
    ]
    if len(ticks) < 2:
        ticks = [low * 10**margin, high / 10**margin] if low != high else [low]
    settings = {"type": "log", "tickvals": ticks, "ticktext": [word(tick) for tick in ticks]}
    figure.layout[axis].update(settings, range=[math.log10(low), math.log10(high)])


def _look(record: Record, model: Candidate) -> tuple[str, str, int]:
    if model.id == record.chosen:
        return CHOSEN, "star", 18
    if model.id == record.teacher.id:
        return TEACHER, "square", 12
    return (BASELINE, "diamond", 13) if model.id in record.baselines else (STUDENT, "circle", 11)


def _finish(figure: go.Figure, *, height: int) -> Figure:
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 12, "r": 12, "t": 12, "b": 12},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0, "title": None},
        hoverlabel={"align": "left"},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
    )
    figure.update_xaxes(automargin=True, zeroline=False)
    figure.update_yaxes(automargin=True, zeroline=False)
    made: Figure = json.loads(figure.to_json())
    made["layout"].pop("template", None)
    return made
