"""How numbers and architectures read in every output: one spelling for the terminal, the report and the model
card."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

from results.record import Candidate, Emulated, Record

ABSENT = "–"
"""Shown where a figure does not exist, so that a missing number can't pass for zero."""


PALETTE = ("#3b7dd8", "#e0912f", "#2f9e77", "#b565c9", "#d8574f", "#5fb3ce", "#a08b3c", "#7f7fd5", "#8a8f98")
"""Mid-tone colours that keep their contrast on white and on near-black."""


def size(count: float | None) -> str:
    """Bytes in decimal units: 1_234_567 -> "1.23 MB"."""
    if count is None:
        return ABSENT
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.4g} TB"


def seconds(value: float | None) -> str:
    """Seconds with the unit that reads best: 0.0123 -> "12.3 ms"."""
    if value is None:
        return ABSENT
    if value == 0:
        return "0 s"
    if value < 0.9995e-3:
        return f"{value * 1e6:.3g} µs"
    if value < 0.9995:
        return f"{value * 1e3:.3g} ms"
    if value < 120:
        return f"{value:.3g} s"
    return f"{int(value // 60)} min {value % 60:.0f} s"


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction as a percentage: 0.9432 -> "94.3 %"."""
    return ABSENT if value is None else f"{100 * value:.{digits}f} %"


def count(value: float | None) -> str:
    """An integer with thousands separators."""
    return ABSENT if value is None else f"{value:,.0f}"


def number(value: float | None) -> str:
    """Any other figure, three significant digits."""
    return ABSENT if value is None else f"{value:.3g}"


def times(value: float | None) -> str:
    """A ratio: 7.234 -> "7.2×"."""
    if value is None:
        return ABSENT
    return f"{value:.0f}×" if value >= 99.5 else f"{value:.2g}×" if value < 10 else f"{value:.3g}×"


def ratio(first: float | None, second: float | None) -> float | None:
    """`first / second`, or None when either is missing or the second is zero."""
    return None if first is None or not second else first / second


def natural(text: str) -> list[Any]:
    """Sort key that puts layer 2 before layer 10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]


def architecture_summary(architecture: Mapping[str, str], sites: Iterable[Mapping[str, Any]]) -> str:
    """One line: "softmax: power4 ×4, exact ×2 · activation: quad_channel ×6". Sites not named are exact."""
    kinds: dict[str, Counter[str]] = {}
    known = {str(site["name"]): str(site["kind"]) for site in sites}
    for site, kind in known.items():
        kinds.setdefault(kind, Counter())[architecture.get(site, "exact")] += 1
    for site, variant in architecture.items():
        if site not in known:
            kinds.setdefault("other", Counter())[variant] += 1
    parts = []
    for kind, tally in kinds.items():
        listed = ", ".join(
            f"{variant} ×{n}" for variant, n in sorted(tally.items(), key=lambda p: (-p[1], p[0]))
        )
        parts.append(f"{kind}: {listed}")
    return " · ".join(parts) or "as the teacher"


def metric_name(record: Record) -> str:
    """What `accuracy` means in this record: the task says, "accuracy" unless it does."""
    return str(record.task.get("metric", "accuracy"))


def metric(record: Record, value: float | None) -> str:
    """A value of the record's metric as it should read."""
    return percent(value) if metric_name(record) in {"accuracy", "f1"} else number(value)


def network_title(name: str) -> str:
    """A network profile as it reads: its name, of a file the name without folder and ending."""
    return (PurePath(name).stem if name.endswith((".yaml", ".yml")) else name).upper()


def networks(record: Record) -> list[str]:
    """Network profiles that the record prices, in the order in which they were given."""
    seen: dict[str, None] = {}
    for model in record.models():
        for name in model.predicted.seconds if model.predicted else ():
            seen.setdefault(name)
    return list(seen)


EMULATION_HEADER = [
    "emulated network",
    "phase",
    "predicted",
    "measured",
    "spread",
    "deviation",
    "queries",
    "counts equal",
]
EMULATION_NOTE = (
    "The same parties with every link between them held to the profile's delay and bandwidth. Seconds of one query, the "
    "median and the spread of those measured; deviation is measured against predicted."
)


def emulation(emulated: Mapping[str, Emulated]) -> list[list[str]]:
    """Rows of EMULATION_HEADER for one model: each network's online and offline seconds."""
    rows = []
    for name, run in emulated.items():
        for phase, timing in (("online", run.online), ("offline", run.offline)):
            row = [network_title(name), phase, seconds(timing.predicted), seconds(timing.measured)]
            row.append(f"{seconds(timing.least)} to {seconds(timing.most)}")
            row.append(ABSENT if timing.deviation is None else f"{100 * timing.deviation:+.1f} %")
            rows.append([*row, count(run.queries), "yes" if run.equal else "NO"])
    return rows


def emulations(record: Record) -> list[list[str]]:
    """The rows of every model, its title before each."""
    return [[model.title, *row] for model in record.models() for row in emulation(model.emulated)]


def predicted_total(model: Candidate, network: str) -> float | None:
    """Predicted seconds of one online query of `model` on `network`."""
    if model.predicted is None or network not in model.predicted.seconds:
        return None
    return model.predicted.seconds[network].total


SUMMARY_NOTE = "Bytes: the most that one party sends online. Seconds: one online query."


def checked(record: Record) -> list[str]:
    """Against what each model of the summary was checked, before its run under MPC; the same for most records."""
    return [model.secure.checked if model.secure else ABSENT for model in record.headline()]


def summary_note(record: Record) -> str:
    """What stands above the summary: units, and what all models were checked against. If that differs, the table has a column."""
    found = set(checked(record))
    return SUMMARY_NOTE + (
        f" That values fit fixed point was checked: {found.pop()}." if len(found) == 1 else ""
    )


def summary(record: Record) -> tuple[list[str], list[list[str]]]:
    """The table that a run ends with: header, and a row for the teacher, each baseline and the chosen
    student."""
    name = metric_name(record)
    nets = networks(record)
    header = ["model", f"test {name}, plaintext", f"{name} under MPC", "same examples, plaintext"]
    header += [
        "agreement under MPC",
        "online bytes",
        "rounds",
        *(f"predicted {network_title(net)}" for net in nets),
    ]
    header.append("measured loopback")
    differs = len(set(checked(record))) > 1
    if differs:
        header.append("values checked")
    rows = []
    for model, against in zip(record.headline(), checked(record), strict=True):
        secure, predicted, measured = model.secure, model.predicted, model.measured
        row = [model.title, metric(record, model.accuracy.test)]
        row += [metric(record, secure.accuracy) if secure else ABSENT]
        row += [metric(record, secure.plaintext) if secure else ABSENT]
        row += [percent(secure.agreement) if secure else ABSENT]
        row += [size(predicted.online.bytes) if predicted else ABSENT]
        row += [count(predicted.online.rounds) if predicted else ABSENT]
        row += [seconds(predicted_total(model, net)) for net in nets]
        row.append(seconds(measured.online.seconds) if measured else ABSENT)
        rows.append([*row, against] if differs else row)
    return header, rows


def comparison(record: Record) -> list[dict[str, Any]]:
    """Predicted against measured counts, a row for every verified model and phase, with `equal` for the
    row."""
    rows: list[dict[str, Any]] = []
    for model in record.models():
        if model.predicted is None or model.measured is None:
            continue
        for phase in ("setup", "offline", "online"):
            predicted, measured = getattr(model.predicted, phase), getattr(model.measured, phase)
            rows.append(
                {
                    "model": model.title,
                    "phase": {"setup": "set-up"}.get(phase, phase),
                    "predicted_bytes": predicted.bytes,
                    "measured_bytes": measured.bytes,
                    "predicted_rounds": predicted.rounds,
                    "measured_rounds": measured.rounds,
                    "seconds": measured.seconds,
                    "equal": (predicted.bytes, predicted.rounds) == (measured.bytes, measured.rounds),
                }
            )
    return rows


def grid(
    record: Record, architecture: Mapping[str, str]
) -> tuple[list[str], list[tuple[str, list[str | None]]]]:
    """The architecture as a grid: kinds as columns, layers as rows, a variant or None in each cell.

    Sites outside any layer come last, a row each, under their own name.
    """
    sites = record.task.get("sites", [])
    kinds = list(dict.fromkeys(str(site["kind"]) for site in sites))
    rows: dict[str, dict[str, list[str]]] = {}
    layered = [site for site in sites if site.get("layer") is not None]
    for site in sorted(layered, key=lambda s: int(s["layer"])) + [s for s in sites if s.get("layer") is None]:
        label = f"layer {site['layer']}" if site.get("layer") is not None else str(site["name"])
        cells = rows.setdefault(label, {})
        cells.setdefault(str(site["kind"]), []).append(architecture.get(str(site["name"]), "exact"))
    table: list[tuple[str, list[str | None]]] = []
    for label, found in rows.items():
        cell: list[str | None] = [
            " / ".join(dict.fromkeys(found[kind])) if kind in found else None for kind in kinds
        ]
        table.append((label, cell))
    return kinds, table


def headline(record: Record) -> str:
    """One sentence that says what came out, in numbers that the record holds."""
    if record.chosen is None:
        return (
            "No student met the limits: "
            + str(record.choice.get("reason", "see the candidates below."))
            + " "
        )
    chosen, teacher, network = (
        record.find(record.chosen),
        record.teacher,
        str(record.secure.get("network", "")),
    )
    name = metric_name(record)
    parts = [f"The chosen student has a test {name} of {metric(record, chosen.accuracy.test)}"]
    kept = ratio(chosen.accuracy.test, teacher.accuracy.test)
    if kept is not None:
        parts.append(f", {percent(kept)} of its teacher's {metric(record, teacher.accuracy.test)}")
    mine, theirs = predicted_total(chosen, network), predicted_total(teacher, network)
    if mine is not None and theirs is not None:
        gain = ratio(theirs, mine)
        parts.append(
            f". One private query is predicted to take {seconds(mine)} on the {network_title(network)} profile "
            f"where the teacher takes {seconds(theirs)}: {times(gain)} less"
        )
    return "".join(parts) + "."


def device_profile(source: Mapping[str, str]) -> str:
    """Which device profile seconds come from, and when it was measured on what; empty where that is not known."""
    if not source:
        return ""
    told = f"{source['name']}, measured {source['date'] or 'at an unknown date'}"
    return told + (f" on {source['hardware']}" if source["hardware"] else "")


RANGES_NOTE = (
    "What values were on training texts, and how many times they could double (or halve) before fixed point or a function is no longer "
    "right for them. A query far from those texts can leave these ranges."
)
TIGHTEST = 8


def ranges(record: Record) -> tuple[list[str], list[list[str]]]:
    """Whether each model's values fit fixed point on training texts: header, and a row a model."""
    header = ["model", "training texts", "margin", "fits", "bits to spare, at the least", "tightest"]
    rows = []
    for model in record.models():
        found = model.ranges
        if found is None:
            continue
        if not found.fits:
            worst = found.violations[0] if found.violations else ABSENT
            rows.append([model.title, ABSENT, ABSENT, "no", ABSENT, worst])
            continue
        first = found.tightest(1)
        place = (
            f"{first[0]['quantity']} of {first[0]['op']} in {first[0]['site'] or 'the model'}"
            if first
            else ABSENT
        )
        spare = ABSENT if found.spare_bits is None else f"{found.spare_bits:.1f}"
        rows.append([model.title, count(found.inputs), f"{found.margin_bits:g} bits", "yes", spare, place])
    return header, rows


def tightest(model: Candidate) -> tuple[list[str], list[list[str]]]:
    """A model's values that are nearest to their limits."""
    header = ["where", "operation", "what", "smallest", "largest", "allowed", "bits to spare"]
    rows = []
    for row in model.ranges.tightest(TIGHTEST) if model.ranges else []:
        low, high = (ABSENT if row[name] is None else f"{row[name]:.4g}" for name in ("low", "high"))
        smallest = ABSENT if row["smallest"] is None else f"{row['smallest']:.4g}"
        place = [row["site"] or "the model", row["op"], row["quantity"], smallest, f"{row['largest']:.4g}"]
        rows.append([*place, f"{low} to {high}", f"{row['spare_bits']:.1f}"])
    return header, rows
