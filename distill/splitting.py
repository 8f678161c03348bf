"""Official splits, what is split off where there are none, and the removal of texts that two splits share."""

import hashlib
from collections.abc import Mapping, Sequence

from distill.errors import DataError, suggestion
from distill.row import Row
from distill.task_config import SPLITS, TaskConfig

ALIASES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "development"),
    "test": ("test", "testing", "eval", "evaluation"),
}


def official(names: Sequence[str], config: TaskConfig) -> dict[str, str]:
    """{"train": name of the official split, …} of those that there are, by `config.splits` or by their names.

    Raises DataError for a name that isn't there, several that may be meant, or no training split.
    """
    given = config.splits or {}
    found = {}
    for role in SPLITS:
        if role in given:
            if given[role] not in names:
                raise DataError(f"{config.source}: no split {given[role]!r}{suggestion(given[role], names)}")
            found[role] = given[role]
            continue
        free = [name for name in names if name not in given.values()]
        exact = [name for alias in ALIASES[role] for name in free if name.lower() == alias]
        near = [name for name in free if name.lower().startswith(f"{role}_")]
        if exact:
            found[role] = exact[0]
        elif len(near) == 1:
            found[role] = near[0]
        elif near:
            raise DataError(
                f"{config.source}: {' and '.join(near)} may be the {role} split; say which in `splits: {{{role}: …}}`"
            )
    if "train" not in found:
        if len(names) == 1 and not found:
            return {"train": names[0]}
        raise DataError(
            f"{config.source}: none of the splits {', '.join(names)} is named as a training split usually is; "
            "say which in `splits: {train: …}`"
        )
    return found


def position(key: str, seed: int) -> float:
    """Pseudo-random position of a text in [0, 1), the same on every platform."""
    digest = hashlib.sha256(f"{seed}\n{key}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def divide(
    official_rows: Mapping[str, list[Row]], config: TaskConfig
) -> tuple[dict[str, list[Row]], list[Row], list[str]]:
    """(rows of each split, training rows without a label, notes).

    Rows are in the order of their texts' positions. An official validation or test split keeps its own
    duplicates: figures on it can then be compared with others'.
    """
    notes: list[str] = []
    labelled = {name: [row for row in rows if row.label is not None] for name, rows in official_rows.items()}
    unlabelled = [row for row in official_rows["train"] if row.label is None]
    for name in SPLITS[1:]:
        hidden = len(official_rows.get(name, ())) - len(labelled.get(name, ()))
        if not hidden:
            continue
        if labelled[name]:
            notes.append(f"{name}: {hidden:,} rows without a label are left out")
        else:
            notes.append(f"the official {name} split has no labels: it is left out")
            del labelled[name]
    train = _once(labelled["train"])
    if len(train) < len(labelled["train"]):
        first = {row.key: row.label for row in train}
        other = sum(first[row.key] != row.label for row in labelled["train"])
        notes.append(
            f"{len(labelled['train']) - len(train):,} repeated training texts are left out"
            + (f", {other:,} of them with another label than their first" if other else "")
        )
    parts = {"train": train, **{name: labelled[name] for name in SPLITS[1:] if name in labelled}}
    _split_off(parts, config, notes)
    held = {row.key for row in parts["test"]}
    for name, others in (("validation", held), ("train", held | {row.key for row in parts["validation"]})):
        kept = [row for row in parts[name] if row.key not in others]
        if len(kept) < len(parts[name]):
            notes.append(
                f"{len(parts[name]) - len(kept):,} {name} texts that a later split has too are left out"
            )
        parts[name] = kept
    used = {row.key for rows in parts.values() for row in rows}
    free = [row for row in _once(unlabelled) if row.key not in used]
    ordered = {name: _first(rows, config) for name, rows in parts.items()}
    for name in SPLITS:
        if not ordered[name]:
            raise DataError(f"{config.source}: the {name} split is empty{_because(notes)}")
    if config.kind == "classification":
        _check_classes(ordered, config, notes)
    return ordered, _first(free, config), notes


def _split_off(parts: dict[str, list[Row]], config: TaskConfig, notes: list[str]) -> None:
    """Take the splits that are missing from one that is there.

    A missing test split comes from the official validation split where there is one: whoever fine-tuned the
    checkpoint has not trained on that.
    """
    missing = [name for name in SPLITS[1:] if name not in parts]
    if not missing:
        return
    if missing == ["test"]:
        source, shares = "validation", {"test": config.test / (config.test + config.validation)}
    else:
        every = {"test": config.test, "validation": config.validation}
        source, shares = "train", {name: share for name, share in every.items() if name in missing}
    rest: list[Row] = []
    taken: dict[str, list[Row]] = {name: [] for name in shares}
    for row in parts[source]:
        place = position(row.key, config.seed)
        for name, share in shares.items():
            if place < share:
                taken[name].append(row)
                break
            place -= share
        else:
            rest.append(row)
    parts.update(taken)
    parts[source] = rest
    said = " and ".join(f"{len(rows):,} for {name}" for name, rows in taken.items())
    notes.append(f"split off from {source} by a hash of the text: {said}")


def _because(notes: Sequence[str]) -> str:
    return f" ({'; '.join(notes)})" if notes else ""


def _check_classes(parts: Mapping[str, Sequence[Row]], config: TaskConfig, notes: Sequence[str]) -> None:
    """Refuse training texts of one class, from which nothing can be learnt."""
    if len({row.label for row in parts["train"]}) < 2:
        raise DataError(
            f"{config.source}: all {len(parts['train']):,} texts of the train split have the same label{_because(notes)}"
        )


def _once(rows: Sequence[Row]) -> list[Row]:
    """Rows without repetitions of a text; its first label counts."""
    return list({row.key: row for row in reversed(rows)}.values())[::-1]


def _first(rows: Sequence[Row], config: TaskConfig) -> list[Row]:
    """Rows by position, cut to the limit."""
    return sorted(rows, key=lambda row: position(row.key, config.seed))[: config.limit]
