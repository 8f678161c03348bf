"""A sweep of `sordino cost` as one HTML page that needs nothing else and no network: curves, and the figures below them.

Works on the JSON that the command prints, so that a page can be made again from a kept answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2
import plotly.graph_objects as go

from results import wording
from results.style import Figure, finish, log_axis

AXES = {
    "sequence_length": ("tokens of a query", lambda value: f"{value:,.0f}"),
    "batch": ("examples in a query", lambda value: f"{value:,.0f}"),
    "round_trip_s": ("round trip", wording.seconds),
    "bandwidth_bytes_per_s": ("bandwidth, bytes a second", wording.size),
}
"""What can be swept: title of its axis, and how one value reads."""


@dataclass(frozen=True)
class Curve:
    """One line of a figure; `estimate` says that it is another system's, `part` that it is only a part of a line with that name."""

    name: str
    values: Sequence[float | None]
    colour: str
    estimate: bool = False
    part: bool = False


def render_sweep(found: Mapping[str, Any], names: Sequence[str]) -> str:
    """The page of an answer of `sordino cost --sweep … --json`; `names` says what each of its subjects is called.

    Raises KeyError for an answer that is no sweep's.
    """
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    parameter = found["sweep"]["parameter"]
    values = list(found["sweep"]["values"])
    series = found.get("compare") or [found]
    # The bytes are the same on every network.
    hidden = {"bytes"} if parameter in ("round_trip_s", "bandwidth_bytes_per_s") else set()
    made = {
        name: drawn
        for name, (curves, word) in _figures(series, names).items()
        if name not in hidden and (drawn := figure(parameter, values, list(curves), word)) is not None
    }
    points = series[0]["points"]
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_text),
        autoescape=jinja2.select_autoescape(enabled_extensions=("html.j2",), default_for_string=True),
        undefined=jinja2.StrictUndefined,
    )
    estimates = [entry for one in series for entry in one["points"][0].get("systems", [])]
    return environment.get_template("sweep.html.j2").render(
        title=f"{' and '.join(names)} by {AXES[parameter][0]}",
        conditions=_conditions(series, found, points[0], parameter),
        titles={
            "seconds": "Seconds of one online query",
            "bytes": "Bytes that one party sends",
            "cents": "Cents for 1,000 queries, set-up and offline included",
        },
        figures=made,
        header=[
            AXES[parameter][0],
            "offline bytes",
            "online bytes",
            "rounds",
            "compute",
            "network",
            "seconds",
        ],
        tables=[(name, _rows(parameter, one["points"])) for name, one in zip(names, series, strict=True)],
        notices=list(dict.fromkeys(entry["notice"] for entry in estimates)),
        css=Markup(_text("report.css.j2")),
        script=Markup(_text("report.js.j2")),
        plotly=Markup(get_plotlyjs()),
        figures_json=Markup(json.dumps(made).replace("<", "\\u003c")),
    )


def figure(
    parameter: str, values: Sequence[float], curves: Sequence[Curve], word: Callable[[float | None], str]
) -> Figure | None:
    """Curves over the swept values; both axes are logarithmic where everything is positive. None without any figure to draw."""
    drawn = go.Figure()
    title, say = AXES[parameter]
    shown = [c for c in curves if any(c.values)]  # nothing but zeros, or unknown, is no curve
    order = sorted(range(len(values)), key=lambda i: values[i])
    for curve in shown:
        y = [curve.values[i] for i in order]
        dash = "dash" if curve.estimate else "dot" if curve.part else "solid"
        drawn.add_trace(
            go.Scatter(
                x=[values[i] for i in order],
                y=y,
                name=curve.name,
                mode="lines" if curve.part else "lines+markers",
                line={"color": curve.colour, "width": 1.5 if curve.part else 2, "dash": dash},
                marker={"size": 7},
                text=[f"{say(values[i])}: {word(curve.values[i])}" for i in order],
                hovertemplate=f"<b>{curve.name}</b><br>%{{text}}<extra></extra>",
            )
        )
    if not shown:
        return None
    heights = [v for curve in shown for v in curve.values if v is not None]
    drawn.update_xaxes(title=title)
    if min(values) > 0:
        log_axis(drawn, "xaxis", list(values), say)
        drawn.update_xaxes(tickvals=list(values), ticktext=[say(value) for value in values])
    if min(heights) > 0 and max(heights) > min(heights):
        log_axis(drawn, "yaxis", heights, word)
    else:
        drawn.update_yaxes(rangemode="tozero")
    return finish(drawn, height=420)


def _figures(
    series: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> dict[str, tuple[Iterator[Curve], Callable[[float | None], str]]]:
    """The curves of each figure, and how its values read."""

    def every(
        own: Sequence[tuple[str, Callable[[Any], float | None]]], other: Callable[[Any], float | None]
    ) -> Iterator[Curve]:
        colours = iter(wording.PALETTE * 4)
        for name, one in zip(names, series, strict=True):
            colour = next(colours)
            for number, (suffix, of) in enumerate(own):
                yield Curve(name + suffix, [of(point) for point in one["points"]], colour, part=number > 0)
        # Comparison systems are asked about one model: two protocols of it have the same estimates.
        told: dict[tuple[str, str], None] = {}
        for one in series:
            for position, entry in enumerate(one["points"][0].get("systems", [])):
                key = (one["model"], entry["system"])
                if key in told:
                    continue
                told[key] = None
                several = len({each["model"] for each in series}) > 1
                name = f"{entry['system']} (estimate{', ' + one['model'] if several else ''})"
                values = [other(point["systems"][position]) for point in one["points"]]
                yield Curve(name, values, next(colours), estimate=True)

    figures: dict[str, tuple[Iterator[Curve], Callable[[float | None], str]]] = {
        "seconds": (
            every(
                [
                    ("", lambda point: point["seconds"]["total"]),
                    (", compute only", lambda point: point["seconds"]["compute"]),
                ],
                lambda entry: entry["seconds"]["total"],
            ),
            wording.seconds,
        ),
        "bytes": (
            every(
                [
                    (", online", lambda point: point["online"]["bytes"]),
                    (", offline", lambda point: point["offline"]["bytes"]),
                ],
                lambda entry: entry["online_bytes"],
            ),
            wording.size,
        ),
    }
    if all("money" in one["points"][0] for one in series):
        figures["cents"] = (
            every(
                [
                    (", machines occupied", lambda point: point["money"]["total"]["total_cents"]),
                    (", machines computing", lambda point: point["money"]["total"]["least_cents"]),
                ],
                lambda entry: entry["money"]["total"]["total_cents"],
            ),
            lambda value: f"{wording.number(value)} ¢",
        )
    return figures


def _rows(parameter: str, points: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    say = AXES[parameter][1]
    return [
        [
            say(point[parameter]),
            wording.size(point["offline"]["bytes"]),
            wording.size(point["online"]["bytes"]),
            wording.count(point["online"]["rounds"]),
            *(wording.seconds(point["seconds"][key]) for key in ("compute", "network", "total")),
        ]
        for point in points
    ]


def _conditions(
    series: Sequence[Mapping[str, Any]], found: Mapping[str, Any], point: Mapping[str, Any], parameter: str
) -> str:
    """What all subjects have in common, less what is being swept."""
    link = point["link"]
    shared = {key: {one[key] for one in series} for key in ("model", "protocol")}
    parts = {
        **{key: values.pop() for key, values in shared.items() if len(values) == 1},
        "network": f"network {found['network']}",
        "round_trip_s": f"{wording.seconds(link['round_trip_s'])} round trip",
        "bandwidth_bytes_per_s": f"{wording.size(link['bandwidth_bytes_per_s'])}/s",
        "device": f"device {found['device']}",
        "batch": f"batch {point['batch']}",
        "sequence_length": f"{point['sequence_length']} tokens",
    }
    return " · ".join(text for name, text in parts.items() if name != parameter)


def _text(name: str) -> str:
    return resources.files("results.templates").joinpath(name).read_text(encoding="utf-8")
