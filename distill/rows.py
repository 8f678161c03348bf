"""From tables to rows: which columns hold text and label, which labels are hidden, which classes there are."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distill.errors import DataError
from distill.row import Row
from distill.sources import format_of, read_tables
from distill.splitting import official
from distill.task_config import SPLITS, TaskConfig

if TYPE_CHECKING:
    from datasets import Dataset

PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text", "text_pair"),
    ("text1", "text2"),
)
TEXTS = ("text", "sentence", "content", "review", "document", "question", "tweet")
LABELS = ("label", "labels", "class", "category", "target", "score")


@dataclass(frozen=True)
class Rows:
    """Rows of each official split (of "train", "validation", "test" those that there are), and what was found."""

    splits: Mapping[str, list[Row]]
    pairs: bool
    label_names: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Columns:
    """Names of the columns that are read."""

    text: str
    pair: str | None
    label: str


def read_rows(config: TaskConfig) -> Rows:
    """Read the source's tables and take texts and labels from them. Raises DataError, see `distill.load`."""
    tables = read_tables(config)
    roles = official(list(tables), config)
    chosen = {role: tables[name] for role, name in roles.items()}
    notes = []
    if len(tables) > 1:
        left = [name for name in tables if name not in roles.values()]
        said = ", ".join(role if role == name else f"{name} as {role}" for role, name in roles.items())
        notes.append(f"official splits: {said}" + (f"; left alone: {', '.join(left)}" if left else ""))
    columns, guessed = find_columns(config, chosen)
    if guessed and format_of(config) != "lines":
        taken = [f"text {columns.text!r}"] + ([f"text_pair {columns.pair!r}"] if columns.pair else [])
        notes.append(f"columns: {', '.join(taken)}, label {columns.label!r} (by their names)")
    raw = {role: list(table[columns.label]) for role, table in chosen.items()}
    names = getattr(chosen["train"].features[columns.label], "names", None)
    labels, label_names = _labels(raw, names, config)
    _check_texts({role: table[columns.text] for role, table in chosen.items()}, columns.text, config)
    splits = {}
    for role, table in chosen.items():
        pairs = table[columns.pair] if columns.pair else [None] * len(table)
        splits[role] = [
            Row(str(text).strip(), None if columns.pair is None else str(pair).strip(), label)
            for text, pair, label in zip(table[columns.text], pairs, labels[role], strict=True)
            if _there(text) and (columns.pair is None or _there(pair))
        ]
        empty = len(table) - len(splits[role])
        if empty:
            notes.append(f"{role}: {empty:,} rows without text are left out")
    return Rows(splits, columns.pair is not None, label_names, tuple(notes))


def _there(text: Any) -> bool:
    """Whether a field holds a text: not if it is missing, empty or a missing number."""
    return text is not None and text == text and bool(str(text).strip())


def _check_texts(texts: Mapping[str, Sequence[Any]], column: str, config: TaskConfig) -> None:
    """Refuse a column of which every field is a number, or none holds anything: another one has the texts."""
    found = [str(text).strip() for values in texts.values() for text in values if _there(text)]
    if not found:
        raise DataError(f"{config.source}: no row has a text in the column {column!r}")
    if all(_is_number(text) for text in found):
        raise DataError(
            f"{config.source}: the column {column!r} holds numbers only ({found[0]}, …); give the column of the texts as `text`"
        )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def find_columns(config: TaskConfig, tables: Mapping[str, "Dataset"]) -> tuple[Columns, bool]:
    """The columns to read, and whether any was guessed. Raises DataError with the columns that there are."""
    common = [
        name for name in tables["train"].column_names if all(name in t.column_names for t in tables.values())
    ]
    present = f"columns present: {', '.join(common) or '(none)'}"
    text, pair, label = config.text, config.text_pair, config.label
    for given in (text, pair, label):
        if given is not None and given not in common:
            raise DataError(f"{config.source}: no column {given!r}; {present}")
    if text is None:
        pairs = [entry for entry in PAIRS if set(entry) <= set(common)]
        single = [name for name in TEXTS if name in common]
        if len(pairs) == 1:
            text, pair = pairs[0]
        elif not pairs and ("text" in single or len(single) == 1):
            text = "text" if "text" in single else single[0]
        else:
            what = (
                "more than one may be the text" if pairs or single else "none is named as a text usually is"
            )
            raise DataError(f"{config.source}: {what}; give `text` (and `text_pair`); {present}")
    if label is None:
        named = [name for name in LABELS if name in common]
        if not named or (len(named) > 1 and named[0] != "label"):
            what = "more than one may be the label" if named else "none is named as a label usually is"
            raise DataError(f"{config.source}: {what}; give `label`; {present}")
        label = named[0]
    return Columns(text, pair, label), config.text is None or config.label is None


def _plain(value: Any) -> str | None:
    """A label as text; None for a missing one. A whole number that was read as 1.0 is "1"."""
    if isinstance(value, (list, dict)):
        raise DataError(
            f"the label {value!r} is a list or a mapping; one class or one number a text is needed"
        )
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() or None


def _labels(
    raw: Mapping[str, Sequence[Any]], names: Sequence[str] | None, config: TaskConfig
) -> tuple[dict[str, list[int | float | None]], tuple[str, ...]]:
    """Labels of each split as class numbers or values, None where hidden; the names of the classes."""
    hidden = set(config.hidden or ())
    numeric = config.kind == "regression" or config.threshold is not None
    if names is not None and not numeric:
        # A class label: its number, or -1 where it is not given.
        known = {
            role: [None if v is None or v < 0 or names[v] in hidden else int(v) for v in values]
            for role, values in raw.items()
        }
        return _checked(known, tuple(names), config)
    texts = {role: [_plain(value) for value in values] for role, values in raw.items()}
    if names is not None:
        hidden.add("-1")
    for role, values in texts.items():
        if role != "train" and set(values) == {"-1"}:
            texts[role] = [None] * len(values)  # how test labels are withheld
    texts = {role: [None if v in hidden else v for v in values] for role, values in texts.items()}
    if numeric:
        numbers = {
            role: [None if v is None else _number(v, config.source) for v in values]
            for role, values in texts.items()
        }
        if config.kind == "regression":
            return {role: list(values) for role, values in numbers.items()}, ("score",)
        above = {
            role: [None if v is None else int(v > float(config.threshold or 0.0)) for v in values]
            for role, values in numbers.items()
        }
        return _checked(above, ("negative", "positive"), config)
    classes = sorted({v for values in texts.values() for v in values if v is not None}, key=_order)
    _doubtful(classes, sum(v is not None for values in texts.values() for v in values), config)
    index = {name: number for number, name in enumerate(classes)}
    found = {role: [None if v is None else index[v] for v in values] for role, values in texts.items()}
    return _checked(found, tuple(classes), config)


def _order(name: str) -> tuple[int, int, str]:
    """Whole numbers by size, before names."""
    return (0, int(name), "") if name.lstrip("-").isdecimal() else (1, 0, name)


def _number(label: str, source: str) -> float:
    try:
        return float(label)
    except ValueError as error:
        raise DataError(f"{source}: label {label!r} is not a number") from error


def _doubtful(classes: Sequence[str], labelled: int, config: TaskConfig) -> None:
    """Refuse labels that may not be classes. labelled: how many rows have one."""
    if "-1" in classes and config.hidden is None and len(classes) > 2 and "0" in classes:
        raise DataError(
            f"{config.source}: the label -1 stands beside {', '.join(c for c in classes if c != '-1')}; say "
            "`hidden: ['-1']` if it means that there is none, `hidden: []` if it is a class"
        )
    fractions = [name for name in classes if "." in name and name.replace(".", "", 1).lstrip("-").isdecimal()]
    if fractions:
        raise DataError(
            f"{config.source}: the label {fractions[0]!r} is a number, not a class; give `threshold` for two "
            "classes, or kind 'regression'"
        )
    if len(classes) > 2 and 2 * len(classes) > labelled:
        shown = ", ".join(repr(name[:30]) for name in classes[:3])
        raise DataError(
            f"{config.source}: {labelled:,} labelled rows have {len(classes):,} different labels ({shown}, …), so they are no "
            "classes; give the column of the classes as `label`"
        )


def _checked(
    labels: Mapping[str, Sequence[int | None]], names: tuple[str, ...], config: TaskConfig
) -> tuple[dict[str, list[int | float | None]], tuple[str, ...]]:
    """Raises DataError for fewer than two classes, or for classes that only an official validation or test split
    has."""
    found = {role: {v for v in values if v is not None} for role, values in labels.items()}
    if len(names) < 2 or not found["train"]:
        there = f"only one class ({names[0]})" if len(names) == 1 else f"{len(names)} classes"
        raise DataError(
            f"{config.source}: {there} and {sum(v is not None for v in labels['train']):,} labelled "
            "training rows; at least two classes and some labels are needed"
        )
    for role in SPLITS[1:]:
        strange = sorted(found.get(role, set()) - found["train"])
        if strange:
            raise DataError(
                f"{config.source}: the {role} split has classes that the training split has not: "
                f"{', '.join(names[v] for v in strange)}; list them in `hidden` if they mean that there is no label"
            )
    return {role: list(values) for role, values in labels.items()}, names
