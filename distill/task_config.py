"""Where a task's data is and how to read it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from distill.errors import DataError, suggestion

FORMATS = ("lines", "csv", "tsv", "json", "parquet", "dataset", "hub")
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class TaskConfig:
    """Where a task's data is and how to read it.

    Attributes:
        source: "hub:<data set>", "package:<distribution>/<path in it>", or a local path: a file, or a directory
            that `datasets` reads (one that `save_to_disk` wrote, or one of files such as train.csv, test.csv).
        format: "lines" (one item a line, `pattern` with named groups `label` and `text`), "csv", "tsv" (with a
            header line), "json" (JSON lines, or a list of objects), "parquet", "dataset" (a directory), "hub".
            None goes by the source's name.
        config: configuration of a hub data set or of a directory that has several.
        revision: of a hub data set: a branch, tag or commit.
        splits: names of the official splits to use, {"train": …, "validation": …, "test": …}, where they don't
            follow from the names.
        text, text_pair, label: column names. Without `text` it and `text_pair` are guessed from the usual names,
            without `label` that is; `Splits.notes` says what was taken.
        hidden: values of the label that mean that there is none; missing values, empty ones and -1 of a class
            label do anyway.
        pattern: regular expression of a whole line (lines).
        encoding: of the file (lines, csv, tsv).
        quoting: whether double quotes quote a field (csv, tsv).
        kind: "classification" (labels are names) or "regression" (labels are numbers).
        threshold: classification of a numeric label: label is "positive" if above it, else "negative".
        validation, test: fractions of the texts, by hash, where there is no official split.
        seed: changes the hash split.
        limit: keep at most this many texts in each split (the first by hash), for trials.
    """

    source: str
    format: Literal["lines", "csv", "tsv", "json", "parquet", "dataset", "hub"] | None = None
    config: str | None = None
    revision: str | None = None
    splits: Mapping[str, str] | None = None
    text: str | None = None
    text_pair: str | None = None
    label: str | None = None
    hidden: Sequence[str] | None = None
    pattern: str | None = None
    encoding: str = "utf-8"
    quoting: bool = True
    kind: Literal["classification", "regression"] = "classification"
    threshold: float | None = None
    validation: float = 0.1
    test: float = 0.1
    seed: int = 0
    limit: int | None = None

    def __post_init__(self) -> None:
        """Check the fields that can be checked without reading the data. Raises DataError."""
        if self.format is not None and self.format not in FORMATS:
            raise DataError(
                f"task.format: unknown format {self.format!r}{suggestion(str(self.format), FORMATS)}"
            )
        if self.kind not in ("classification", "regression"):
            raise DataError(f"task.kind: {self.kind!r} is neither 'classification' nor 'regression'")
        if self.format == "lines":
            groups = re.compile(self.pattern).groupindex if self.pattern else {}
            if not {"label", "text"} <= set(groups):
                raise DataError(
                    "task.pattern: format 'lines' needs a pattern with groups (?P<label>…) and (?P<text>…)"
                )
        if self.text_pair is not None and self.text is None:
            raise DataError("task.text_pair: give `text` as well, the column of the pair's first text")
        for name in self.splits or {}:
            if name not in SPLITS:
                raise DataError(f"task.splits: unknown split {name!r}{suggestion(name, SPLITS)}")
        if not (0 < self.validation < 1 and 0 < self.test < 1 and self.validation + self.test < 1):
            raise DataError(
                f"task: fractions validation={self.validation}, test={self.test} must be > 0, sum < 1"
            )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "TaskConfig":
        """Build from a mapping; an unknown key is a DataError with the closest name."""
        allowed = [field.name for field in fields(cls)]
        for key in data:
            if key not in allowed:
                raise DataError(f"task: unknown key {key!r}{suggestion(key, allowed)}")
        if "source" not in data:
            raise DataError("task: the key 'source' is missing")
        return cls(**data)
