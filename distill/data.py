"""Tasks: texts, or pairs of texts, with labels, in the splits that they come with or in reproducible ones.

Official splits stay as they are. Where there is no validation or test split, or its labels are hidden, a part of
another is split off by a hash of the text, so that a text is in the same split whatever the order, the platform
or the rest of the file; `Splits.notes` says what was done. No text of the test split is in the others, and no
text of the validation split in the training split.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from distill.errors import DataError
from distill.row import Row
from distill.rows import read_rows
from distill.sources import locate
from distill.splitting import divide
from distill.task_config import SPLITS, TaskConfig

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["SPLITS", "Splits", "TaskConfig", "align", "load", "locate"]


@dataclass(frozen=True)
class Splits:
    """A task's data. Each split is a `datasets.Dataset` with columns "text" (str), "text_pair" (str) where the
    task has pairs, and "label" (int, or float in regression).

    Attributes:
        label_names: of the classes, by number.
        unlabelled: training texts without a label, for calibration and distillation only: no column "label".
        notes: what was done to get here, in sentences: columns taken, splits divided, rows left out.
    """

    train: "Dataset"
    validation: "Dataset"
    test: "Dataset"
    label_names: tuple[str, ...]
    kind: Literal["classification", "regression"]
    unlabelled: "Dataset | None" = None
    notes: tuple[str, ...] = ()

    @property
    def num_labels(self) -> int:
        """Outputs of a model for this task: the number of classes, or 1 for regression."""
        return len(self.label_names) if self.kind == "classification" else 1


def load(task: TaskConfig | Mapping[str, Any]) -> Splits:
    """Read a task's data and bring it into three splits without common texts.

    Raises:
        DataError: file or package missing, a column or split missing (the ones present are listed), a line that
            does not match the pattern, a label that is not a number in regression, labels that may or may not
            be hidden, a class that an official test split has and the training split has not, fewer than two
            classes, or an empty split.
    """
    config = task if isinstance(task, TaskConfig) else TaskConfig.from_dict(task)
    rows = read_rows(config)
    parts, unlabelled, notes = divide(rows.splits, config)
    counts = ", ".join(f"{len(parts[name]):,} {name}" for name in SPLITS)
    kept = f", {len(unlabelled):,} training texts without a label" if unlabelled else ""
    return Splits(
        **{name: dataset(part, rows.pairs) for name, part in parts.items()},
        label_names=rows.label_names,
        kind=config.kind,
        unlabelled=dataset(unlabelled, rows.pairs, labels=False) if unlabelled else None,
        notes=(*rows.notes, *notes, f"examples: {counts}{kept}"),
    )


def dataset(rows: Sequence[Row], pairs: bool, labels: bool = True) -> "Dataset":
    """Rows as a table with the columns that `Splits` describes."""
    from datasets import Dataset  # imported late: it takes a second

    columns: dict[str, list[Any]] = {"text": [row.text for row in rows]}
    if pairs:
        columns["text_pair"] = [row.pair for row in rows]
    if labels:
        columns["label"] = [row.label for row in rows]
    return Dataset.from_dict(columns)


def align(splits: Splits, names: Sequence[str]) -> Splits:
    """`splits` with its classes numbered as a model numbers them.

    names: of the model's outputs, in their order. They are the data's own in any order and case, or numbers, or
        transformers' placeholders LABEL_0, LABEL_1, …; the last two are taken by number, which a note says.

    Raises DataError if the numbers of classes differ or the names don't go together.
    """
    if splits.kind != "classification":
        if len(names) != 1:
            raise DataError(f"the model has {len(names)} outputs and a regression needs one")
        return splits
    ours = list(splits.label_names)
    if len(names) != len(ours):
        raise DataError(
            f"the model has {len(names)} classes ({', '.join(names)}), the data {len(ours)} ({', '.join(ours)})"
        )
    if list(names) == ours:
        return splits
    numbers = [str(index) for index in range(len(ours))]
    placeholders = list(names) == [f"LABEL_{index}" for index in numbers]
    if placeholders or ours == numbers or list(names) == numbers:
        said = ", ".join(f"{name} = {given}" for name, given in zip(names, ours, strict=True))
        return replace(splits, notes=(*splits.notes, f"classes are the model's by their number: {said}"))
    folded = {name.casefold(): index for index, name in enumerate(names)}
    if len(folded) < len(names) or {name.casefold() for name in ours} != set(folded):
        raise DataError(
            f"the model's classes are {', '.join(names)} and the data's {', '.join(ours)}: they must be the same names"
        )
    place = [folded[name.casefold()] for name in ours]

    def renumbered(part: "Dataset") -> "Dataset":
        return part.remove_columns("label").add_column("label", [place[label] for label in part["label"]])

    return replace(
        splits,
        train=renumbered(splits.train),
        validation=renumbered(splits.validation),
        test=renumbered(splits.test),
        label_names=tuple(sorted(ours, key=lambda name: folded[name.casefold()])),
        notes=(*splits.notes, f"classes are numbered as the model numbers them: {', '.join(names)}"),
    )
