"""Hand over the chosen student: a directory that transformers loads without Sordino, with its model card."""

from __future__ import annotations

from recipes import record
from recipes.context import Context
from recipes.files import read_json, replace_directory, write_json
from recipes.progress import Callback
from recipes.rundir import Step
from recipes.schema import section
from recipes.stages import emulate as emulate_stage
from recipes.stages import verify as verify_stage

PROGRAM = "program.pt2"


def steps(context: Context) -> list[Step]:
    formats = context.recipe.export.formats

    def work(progress: Callback) -> None:
        import distill
        from results import model_card

        chosen = read_json(context.run / "verify/choice.json")["chosen"]
        student = distill.restore(context.run / f"distill/{chosen}/model")
        card = model_card(record.build(context))
        temporary = context.run / "export/model"  # moved into place when it is whole, the program included
        progress(0, len(formats), "writing the model")
        distill.export(student, context.tokenizer, temporary, card)
        if "torch_export" in formats:
            progress(1, len(formats), "exporting the program")
            _program(context, student, temporary)
        replace_directory(temporary, context.run / "model")
        files = sorted(
            str(f.relative_to(context.run / "model"))
            for f in (context.run / "model").rglob("*")
            if f.is_file()
        )
        write_json(
            context.run / "export/result.json",
            {"path": str(context.run / "model"), "formats": list(formats), "files": files},
        )
        progress(len(formats), len(formats), "exported")

    needs = ["data", "search", "choice", *(f"verify/{name}" for name in verify_stage.verified(context))]
    needs += [step.name for step in emulate_stage.steps(context)]
    return [
        Step(
            name="export",
            title="export",
            inputs=section(context.recipe, "export", "verify", "report") | {"name": context.name},
            needs=needs,
            folder="export",
            outputs=("model/config.json", "model/README.md", "export/result.json"),
            work=work,
        )
    ]


def _program(context: Context, student, folder) -> None:  # type: ignore[no-untyped-def]
    """The student as one torch.export program for queries of the recipe's shape."""
    import torch

    inputs = context.example_inputs()
    with torch.no_grad():
        program = torch.export.export(student.eval(), args=(), kwargs=inputs, strict=False)
    torch.export.save(program, folder / PROGRAM)
