"""What the figures share: colours, log axes with readable ticks, and how one is handed to the page."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import plotly.graph_objects as go

Figure = dict[str, Any]

CHOSEN, TEACHER, BASELINE, STUDENT, TRIED = "#2f9e77", "#d8574f", "#e0912f", "#3b7dd8", "#8a8f98"


def log_axis(figure: go.Figure, axis: str, values: list[float], word: Callable[[float], str]) -> None:
    """Make `axis` logarithmic over positive `values`, with a margin and a few round ticks worded by `word`."""
    low, high = min(values), max(values)
    margin = 0.06 * max(math.log10(high / low), 0.3)
    low, high = low * 10**-margin, high * 10**margin
    settings = {"type": "log", "range": [math.log10(low), math.log10(high)]}
    ticks = round_ticks(low, high)
    figure.layout[axis].update(settings, tickvals=ticks, ticktext=[word(tick) for tick in ticks])


def round_ticks(low: float, high: float) -> list[float]:
    """Two to eight round numbers in [low, high], 0 < low < high."""
    if high / low < 4:  # hardly more than a linear scale, so the steps of one
        step = 10.0 ** math.floor(math.log10((high - low) / 4))
        step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 6)
        return [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    steps = (1,) if math.log10(high / low) > 3 else (1, 2, 5)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = max(1, len(decades) // 8 + 1) if len(steps) == 1 else 1
    found = [step * 10.0**decade for decade in decades[::every] for step in steps]
    return [tick for tick in found if low <= tick <= high]


def finish(figure: go.Figure, *, height: int) -> Figure:
    """The specification for the page, without a template: the page's script gives fonts and grid their colours."""
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
