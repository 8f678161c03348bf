"""Read the data once, remove duplicates and split it: later stages and later runs see the same examples."""

from __future__ import annotations

import json
from pathlib import Path

from recipes.context import Context, class_names
from recipes.files import fingerprint, write_json, write_text
from recipes.progress import Callback
from recipes.rundir import Step
from recipes.schema import section

SPLITS = ("train", "validation", "test")


def steps(context: Context) -> list[Step]:
    def work(progress: Callback) -> None:
        splits = context.loaded
        examples = {}
        for name in (*SPLITS, "unlabelled"):
            split = getattr(splits, name)
            if split is None:
                continue
            examples[name] = len(split)
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in split]
            write_text(context.run / f"data/{name}.jsonl", "".join(lines))
        for note in splits.notes:
            context.say(f"data: {note}")
        info = {"label_names": list(splits.label_names), "kind": splits.kind, "examples": examples}
        write_json(context.run / "data/info.json", info | {"notes": list(splits.notes)})

    # A teacher that is used as it is numbers the classes.
    classes = class_names(context.config) if context.given else None
    return [
        Step(
            name="data",
            title="data",
            inputs={**data_inputs(context), "seed": context.recipe.seed, "classes": classes},
            needs=(),
            folder="data",
            outputs=[*(f"data/{name}.jsonl" for name in SPLITS), "data/info.json"],
            work=work,
        )
    ]


def data_inputs(context: Context) -> dict[str, object]:
    """What the data depends on: the recipe's task and the file's content (of a hub data set, its name)."""
    from distill.data import locate

    source = context.task.source
    content = None if source.startswith("hub:") else fingerprint(Path(locate(source)))
    return {"task": section(context.recipe, "teacher")["teacher"]["task"], "content": content}
