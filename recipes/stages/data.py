"""Read the data once, remove duplicates and split it: later stages and later runs see the same examples."""

from __future__ import annotations

import json
from pathlib import Path

from recipes.context import Context
from recipes.files import fingerprint, write_json, write_text
from recipes.progress import Callback
from recipes.rundir import Step
from recipes.schema import section

SPLITS = ("train", "validation", "test")


def steps(context: Context) -> list[Step]:
    def work(progress: Callback) -> None:
        import distill

        splits = distill.load(context.task)
        examples = {}
        for name in SPLITS:
            split = getattr(splits, name)
            examples[name] = len(split)
            rows = zip(split["text"], split["label"], strict=True)
            lines = [
                json.dumps({"text": text, "label": label}, ensure_ascii=False) + "\n" for text, label in rows
            ]
            write_text(context.run / f"data/{name}.jsonl", "".join(lines))
        info = {"label_names": list(splits.label_names), "kind": splits.kind, "examples": examples}
        write_json(context.run / "data/info.json", info)

    return [
        Step(
            name="data",
            title="data",
            inputs={**data_inputs(context), "seed": context.recipe.seed},
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
