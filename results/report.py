"""The report of a run: `report.html`, one file that needs nothing else and no network, and `report.md`.

Both are made from the record alone. Numbers are worded by `results.wording`, figures come from
`results.figures`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from results import wording
from results.record import Candidate, FrontPoint, Record

GENERAL_DISCLOSURE = (
    "Visible to every party by design: the model's architecture and tensor shapes, the sequence length and "
    "attention "
    "mask of each query, its timing, and the number of queries.",
    "The query's text and its tokens are secret from everyone but the client; the weights are secret from "
    "everyone "
    "but the model owner. The declared outputs are revealed to the client only.",
    "Security is semi-honest: parties follow the protocol and do not collude beyond what it allows. Repeated "
    "queries "
    "teach the client about the model what its outputs always teach.",
)
"""Said where the protocol gives no description of its own."""

AUTO_CLASSES = {
    "classification": "AutoModelForSequenceClassification",
    "regression": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
}
"""The transformers class that loads the exported model, by the task's kind; AutoModel otherwise."""


def render_html(record: Record) -> str:
    """The report as one HTML page with plotly.js inlined once."""
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    from results import figures  # plotly takes a second, and only this page needs it

    made = figures.all_figures(record)
    values = _context(record)
    values.update(
        figures=made,
        css=_text("report.css.j2"),
        script=_text("report.js.j2"),
        plotly=get_plotlyjs(),
        figures_json=_script_json(made),
        tiles=tiles(record),
        count=wording.count,
        seconds=wording.seconds,
        layers_title=record.headline()[-1].title,
        colours=_colours(record),
    )
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_text),
        autoescape=jinja2.select_autoescape(enabled_extensions=("html.j2",), default_for_string=True),
        undefined=jinja2.StrictUndefined,
    )
    for name in ("css", "script", "plotly", "figures_json"):  # our own text, not the user's
        values[name] = Markup(values[name])
    return environment.get_template("report.html.j2").render(values)


def render_markdown(record: Record) -> str:
    """The report as GitHub Markdown, every figure of the page that is a table."""
    values = _context(record)
    front_header, front_cells = _front_table(record)
    candidate_header, candidate_cells = _candidate_table(record)
    choice_header, choice_cells = values["choice_table"]
    values.update(
        table=markdown_table,
        choice_header=choice_header,
        choice_cells=choice_cells,
        grid_cells=lambda rows: [[label, *(cell or "" for cell in cells)] for label, cells in rows],
        summary_cells=[row for row, _ in values["summary_rows"]],
        front_header=front_header,
        front_cells=front_cells,
        candidate_header=candidate_header,
        candidate_cells=candidate_cells,
        comparison_cells=_comparison_cells(values["comparison"]),
    )
    return render_template("report.md.j2", values)


def render_template(name: str, values: Mapping[str, Any]) -> str:
    """A Markdown template of this package with `values`; runs of blank lines are made one."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_text),
        autoescape=False,  # noqa: S701 - Markdown, not HTML
        undefined=jinja2.StrictUndefined,
    )
    text = environment.get_template(name).render(values)
    lines: list[str] = []
    for line in text.splitlines():
        if line.strip() or (lines and lines[-1].strip()):
            lines.append(line.rstrip())
    return "\n".join(lines).strip() + "\n"


def write_reports(record: Record, directory: str | Path) -> list[Path]:
    """Write report.html and report.md into `directory`, each whole or not at all; returns their paths."""
    folder = Path(directory)
    written = []
    for name, text in (("report.html", render_html(record)), ("report.md", render_markdown(record))):
        temporary = folder / f".{name}.{os.getpid()}.tmp"
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, folder / name)
        written.append(folder / name)
    return written


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A GitHub table: first column left, the rest right; pipes in cells are escaped."""

    def line(cells: Sequence[Any]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    rule = "|" + "|".join("---" if i == 0 else "---:" for i in range(len(header))) + "|"
    return "\n".join([line(header), rule, *(line(row) for row in rows)])


def tiles(record: Record) -> list[dict[str, str]]:
    """The few figures that a reader should see first, with what they are compared to."""
    if record.chosen is None:
        return []
    chosen, teacher = record.find(record.chosen), record.teacher
    network = str(record.secure.get("network", ""))
    found = []
    if chosen.accuracy.test is not None:
        kept = wording.ratio(chosen.accuracy.test, teacher.accuracy.test)
        under = f"{wording.percent(kept)} of the teacher's {wording.metric(record, teacher.accuracy.test)}"
        value = wording.metric(record, chosen.accuracy.test)
        found.append({"label": f"Test {wording.metric_name(record)}", "value": value, "under": under})
    mine, theirs = wording.predicted_total(chosen, network), wording.predicted_total(teacher, network)
    if mine is not None:
        under = f"teacher {wording.seconds(theirs)}: {wording.times(wording.ratio(theirs, mine))} less"
        label = f"One query, {wording.network_title(network)}, predicted"
        found.append({"label": label, "value": wording.seconds(mine), "under": under})
    if chosen.predicted is not None and teacher.predicted is not None:
        before, after = teacher.predicted.online, chosen.predicted.online
        under = f"in {after.rounds:,} rounds; teacher {wording.size(before.bytes)} in {before.rounds:,}"
        found.append({"label": "Sent online a query", "value": wording.size(after.bytes), "under": under})
    if chosen.secure is not None:
        under = f"agree with plaintext, of {chosen.secure.samples} test examples"
        value = wording.percent(chosen.secure.agreement)
        found.append({"label": "Answers under MPC", "value": value, "under": under})
    return found


def visible_lines(record: Record) -> list[str]:
    """What each party can see: the protocol's own words, else the general ones, and how this run was made."""
    lines = list(record.disclosure) or list(GENERAL_DISCLOSURE)
    parties = record.secure.get("parties")
    runs = {
        m.measured.simulation for m in record.models() if m.measured is not None and m.measured.simulation
    }
    lines += [f"These runs were simulations ({how})" for how in sorted(runs)]
    if parties == "processes":
        lines.append(
            "In this run every party, the dealer among them if the protocol has one, was a process of its "
            "own, all on one machine; client and model owner shared the one that started them and made every "
            "role's keys: a simulation that measures cost and accuracy and protects nothing."
        )
    elif parties == "threads":
        lines.append(
            "In this run the parties were threads of one process: a simulation that measures cost and "
            "accuracy "
            "and protects nothing."
        )
    return lines


def _context(record: Record) -> dict[str, Any]:
    header, rows = wording.summary(record)
    models = record.headline()
    comparison = wording.comparison(record)
    second_header, second_rows = _seconds_table(record)
    shown = (
        [model for model in models if model.architecture or model.structure]
        if record.task.get("sites")
        else []
    )
    return {
        "record": record,
        "headline": wording.headline(record),
        "metric": wording.metric_name(record),
        "summary_note": wording.summary_note(record),
        "samples_note": samples_note(record),
        "summary_header": header,
        "summary_rows": [(row, model.id == record.chosen) for row, model in zip(rows, models, strict=True)],
        "comparison": comparison,
        "all_equal": all(row["equal"] for row in comparison),
        "emulated_header": ["model", *wording.EMULATION_HEADER],
        "emulated_rows": wording.emulations(record),
        "emulated_note": wording.EMULATION_NOTE,
        "second_header": second_header,
        "second_rows": second_rows,
        "grids": [(model.title, *wording.grid(record, model.architecture)) for model in reversed(shown)],
        "visible": visible_lines(record),
        "environment": _environment(record),
        "ranges_note": wording.RANGES_NOTE,
        "ranges_table": wording.ranges(record),
        "tightest_title": models[-1].title,
        "tightest_table": wording.tightest(models[-1]),
        "versions": sorted(record.versions.items()),
        "auto_class": AUTO_CLASSES.get(str(record.task.get("kind")), "AutoModel"),
        "choice_table": _choice_table(record),
        "left_out": _left_out(record),
        "unscored": bool(record.front) and not any(point.fixed_point for point in record.front),
    }


def samples_note(record: Record) -> str:
    """How many examples stand behind the accuracies."""
    parts = []
    tests = record.task.get("examples", {}).get("test")
    if tests:
        parts.append(f"The test split has {tests:,} examples")
    secure = [model.secure.samples for model in record.headline() if model.secure]
    if secure:
        parts.append(f"{'the' if parts else 'The'} figures under MPC are on {max(secure):,} of them")
    return "; ".join(parts) + "." if parts else ""


def _environment(record: Record) -> list[tuple[str, str]]:
    hardware = record.hardware
    memory = hardware.get("memory_bytes")
    rows = [
        ("date", record.created),
        ("processor", f"{hardware.get('processor', '')}, {hardware.get('cores', '?')} cores"),
        ("memory", wording.size(memory) if memory else wording.ABSENT),
        ("system", str(hardware.get("system", ""))),
        (
            "device profile of predicted seconds",
            wording.device_profile(record.secure.get("device_profile", {})),
        ),
        ("seeds", ", ".join(f"{name} {seed}" for name, seed in record.seeds.items())),
    ]
    examples = record.task.get("examples", {})
    rows.append(("examples", ", ".join(f"{name} {wording.count(n)}" for name, n in examples.items())))
    total = sum(record.stage_seconds.values())
    if total:
        stages = ", ".join(f"{name} {wording.seconds(value)}" for name, value in record.stage_seconds.items())
        rows.append(("time", f"{wording.seconds(total)} ({stages})"))
    return [row for row in rows if row[1]]


def _seconds_table(record: Record) -> tuple[list[str], list[list[str]]]:
    nets = wording.networks(record)
    header = [f"predicted {wording.network_title(net)} (compute + network)" for net in nets] + [
        "measured, loopback"
    ]
    rows = []
    for model in record.models():
        if model.predicted is None or not model.predicted.seconds:
            continue
        row = [model.title]
        for net in nets:
            split = model.predicted.seconds.get(net)
            row.append(
                wording.ABSENT
                if split is None
                else f"{wording.seconds(split.total)} ({wording.seconds(split.compute)} + "
                f"{wording.seconds(split.network)})"
            )
        row.append(wording.seconds(model.measured.online.seconds if model.measured else None))
        rows.append(row)
    return header, rows


def _front_table(record: Record) -> tuple[list[str], list[list[str]]]:
    network = str(record.secure.get("network", ""))
    header = [
        "id",
        "KL",
        f"predicted {wording.network_title(network)}",
        "online bytes",
        "rounds",
        "agrees in fixed point",
        "logit error",
        "bits to spare",
        "architecture",
    ]
    rows = []
    for point in sorted(record.front, key=lambda point: _seconds(point, network)):
        total = point.predicted.seconds.get(network)
        row = [point.name or point.id, wording.number(point.proxy.get("kl"))]
        row += [wording.seconds(total.total if total else None), wording.size(point.predicted.online.bytes)]
        row.append(wording.count(point.predicted.online.rounds))
        row.append(wording.percent(point.fixed_point.get("agreement")))
        row.append(wording.number(point.fixed_point.get("max_logit_error")))
        row.append(wording.number(point.proxy.get("spare_bits")))
        row.append(wording.architecture_summary(point.architecture, record.task.get("sites", [])))
        rows.append(row)
    return header, rows


def _seconds(point: FrontPoint, network: str) -> float:
    """Predicted seconds of a query; last where they are not known."""
    found = point.predicted.seconds.get(network)
    return math.inf if found is None else found.total


def _choice_table(record: Record) -> tuple[list[str], list[list[str]]]:
    """Each student's paired test against the teacher on validation data."""
    header = [
        "student",
        "examples",
        "only the teacher right",
        "only the student right",
        "drop",
        "bounds",
        "allowed",
        "kept",
    ]
    rows = []
    for identifier in record.choice.get("ranking", []):
        test = record.choice.get("tests", {}).get(identifier)
        if test is None:
            continue
        row = [record.find(identifier).title, wording.count(test["items"])]
        row += [wording.count(test[name]) if name in test else wording.ABSENT for name in ("worse", "better")]
        bounds = f"{test['lower']:.4f} to {test['upper']:.4f} ({test['level']:.1%} each)"
        missed = f"no, by {test['missed_by']:.4f}"
        row += [f"{test['drop']:.4f}", bounds, f"{test['allowed']:g}", "yes" if test["kept"] else missed]
        rows.append(row)
    return header, rows


def _left_out(record: Record) -> list[str]:
    """What the search did not offer, or dropped from the front, because fixed point does not hold it."""
    lines = [
        f"{site}: {reason}" for site, reasons in record.not_offered.items() for reason in reasons.values()
    ]
    return lines + [f"{point.name or point.id}: {point.dropped}" for point in record.trials if point.dropped]


def _candidate_table(record: Record) -> tuple[list[str], list[list[str]]]:
    name = wording.metric_name(record)
    header = [
        "model",
        f"{name}, validation",
        f"{name}, test",
        "agreement, validation",
        "within limits",
        "architecture",
    ]
    rows = []
    for model in record.models():
        row = [model.title, wording.metric(record, model.accuracy.validation)]
        row += [wording.metric(record, model.accuracy.test), wording.percent(model.agreement.validation)]
        row.append({True: "yes", False: "no", None: wording.ABSENT}[model.within_limits])
        row.append(wording.architecture_summary(model.architecture, record.task.get("sites", [])))
        rows.append(row)
    return header, rows


def _comparison_cells(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    cells = []
    for row in rows:
        counts = [wording.count(row[k]) for k in ("predicted_bytes", "measured_bytes")]
        counts += [wording.count(row[k]) for k in ("predicted_rounds", "measured_rounds")]
        cells.append(
            [
                row["model"],
                row["phase"],
                *counts,
                "yes" if row["equal"] else "NO",
                wording.seconds(row["seconds"]),
            ]
        )
    return cells


def _colours(record: Record) -> dict[str, str]:
    """A colour for each text in the grids: grey for the teacher's own operation."""
    texts: set[str] = set()
    models: list[Candidate] = record.headline()
    for model in models:
        for _, cells in wording.grid(record, model.architecture)[1]:
            texts.update(cell for cell in cells if cell is not None)
    replaced = sorted(texts - {"exact"})
    return {"exact": "#8a8f98"} | {
        t: wording.PALETTE[i % len(wording.PALETTE)] for i, t in enumerate(replaced)
    }


def _script_json(value: Any) -> str:
    """JSON that can't close the script element that holds it."""
    return json.dumps(value).replace("<", "\\u003c")


def _text(name: str) -> str:
    return resources.files("results.templates").joinpath(name).read_text(encoding="utf-8")
