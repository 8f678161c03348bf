"""The model card that goes with an exported student: YAML front matter that the Hugging Face hub reads, then
prose."""

from __future__ import annotations

from typing import Any

from results import wording
from results.record import Record
from results.report import AUTO_CLASSES, markdown_table, render_template, samples_note, visible_lines

PIPELINES = {
    "classification": "text-classification",
    "regression": "text-classification",
    "token-classification": "token-classification",
    "embedding": "sentence-similarity",
}
"""The hub's name for each kind of task."""


def model_card(record: Record) -> str:
    """README.md of the exported model. Raises ValueError when no student was chosen: there is no model to
    describe."""
    if record.chosen is None:
        raise ValueError("a model card needs a chosen student, and this record has none")
    chosen = record.find(record.chosen)
    kind = str(record.task.get("kind", ""))
    teacher = str(record.recipe.get("teacher", {}).get("checkpoint", ""))
    kinds, rows = wording.grid(record, chosen.architecture)
    header, summary = wording.summary(record)
    values: dict[str, Any] = {
        "name": f"{record.name}-{chosen.id}",
        "title": f"{record.name}: an MPC-friendly student",
        "headline": wording.headline(record),
        "teacher": teacher,
        # The hub reads base_model as a repository; a path of this machine would be a dead link there.
        "base_model": teacher.removeprefix("hub:") if teacher.startswith("hub:") else None,
        "pipeline": PIPELINES.get(kind, "feature-extraction"),
        "metric": wording.metric_name(record),
        "test": chosen.accuracy.test,
        "dataset": str(record.task.get("dataset", "its own data")),
        "version": record.versions.get("sordino", ""),
        "auto_class": AUTO_CLASSES.get(kind, "AutoModel"),
        "summary_note": wording.summary_note(record),
        "samples_note": samples_note(record),
        "table": markdown_table(header, summary),
        "grid": markdown_table(
            ["", *kinds], [[label, *(cell or "" for cell in cells)] for label, cells in rows]
        ),
        "task_text": f"{kind} with the labels {', '.join(map(str, record.task['label_names']))}"
        if record.task.get("label_names")
        else kind,
        "sequence_length": record.secure.get("sequence_length"),
        "batch": record.secure.get("batch"),
        "protocol": record.secure.get("protocol"),
        "visible": visible_lines(record),
        "ranges": "" if chosen.ranges is None else chosen.ranges.summary,
        "tightest": markdown_table(*wording.tightest(chosen)) if chosen.ranges and chosen.ranges.fits else "",
    }
    return render_template("card.md.j2", values)
