"""The record and the reports made from it."""

from __future__ import annotations

from recipes import record
from recipes.context import Context
from recipes.files import read_json
from recipes.progress import Callback
from recipes.rundir import Step
from recipes.schema import dump

STAGES = ("data", "teacher", "calibrate", "search", "distill", "certify", "verify", "export")


def steps(context: Context) -> list[Step]:
    def work(progress: Callback) -> None:
        import results

        progress(0, 2, "gathering the record")
        made = record.build(context, read_json(context.run / "export/result.json"))
        made = made.model_copy(update={"stage_seconds": stage_seconds(context)})
        results.write(made, context.run / "record.json")
        progress(1, 2, "writing the reports")
        results.write_reports(made, context.run.path)
        progress(2, 2, "written")

    return [
        Step(
            name="report",
            title="report",
            inputs=dump(context.recipe) | {"name": context.name},
            needs=("export",),
            folder=None,
            outputs=("record.json", "report.html", "report.md"),
            work=work,
        )
    ]


def stage_seconds(context: Context) -> dict[str, float]:
    """Seconds of each stage, its steps added up."""
    names = [name for name in context.run.keys if name != "report"]
    found = {}
    for stage in STAGES:
        members = [
            n
            for n in names
            if n == stage or n.startswith(f"{stage}/") or (n == "choice" and stage == "verify")
        ]
        found[stage] = round(context.run.seconds(members), 2)
    return {stage: value for stage, value in found.items() if value > 0}
