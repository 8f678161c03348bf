"""What a run leaves behind: `record.json`.

One strict model, so that a report, a test and a reader a year from now agree on what each number means.
Units are said once, here: bytes are the most that any one party sends, rounds lie on the critical path,
seconds are wall-clock, accuracies and agreements are fractions in 0..1, and costs are for one query of
`secure.batch` examples of `secure.sequence_length` tokens (set-up: once per model, whatever the number of
queries).
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1
"""Raised when a field changes its meaning; new optional fields don't raise it."""

LIBRARIES = (
    "sordino", "torch", "transformers", "datasets", "optuna", "numpy", "scikit-learn", "safetensors",
    "accelerate", "cryptography", "pydantic", "plotly",
)  # fmt: skip
"""Distributions whose versions a record states."""


class Strict(BaseModel):
    """Refuses fields it doesn't know, so that a misspelt one can't get lost in a record."""

    model_config = ConfigDict(extra="forbid")


class Phase(Strict):
    """Figures of one phase: set-up, offline or online. A field that was not counted is None, never 0."""

    bytes: int
    rounds: int
    seconds: float | None = None
    macs: int | None = None


class Seconds(Strict):
    """Predicted seconds of one online query on one network profile."""

    compute: float
    network: float
    total: float


class Predicted(Strict):
    """A cost that was predicted: counts per phase, seconds per network, and where the online cost goes.

    by_role: phase -> role -> what that role sends: bytes, messages, and the rounds it waits for.
    """

    setup: Phase
    offline: Phase
    online: Phase
    seconds: dict[str, Seconds] = Field(default_factory=dict)
    by_site: dict[str, Phase] = Field(default_factory=dict)
    by_operation: dict[str, Phase] = Field(default_factory=dict)
    by_role: dict[str, dict[str, dict[str, int]]] = Field(default_factory=dict)


class Measured(Strict):
    """What the engine's own transport counted, and the seconds it took (medians over the queries run).

    `constant` says whether every query cost the same bytes and rounds, as they must: MPC never branches on
    data. `simulation` says which roles shared a process or a machine; `public` what all parties saw of the model's numbers.
    """

    setup: Phase
    offline: Phase
    online: Phase
    network: str
    parties: str
    queries: int
    constant: bool
    by_role: dict[str, dict[str, dict[str, int]]] = Field(default_factory=dict)
    simulation: str | None = None
    public: list[str] | None = None


class Timing(Strict):
    """Seconds of one phase of a query: predicted, and measured (median, smallest and largest of the queries).

    deviation: measured / predicted - 1, None where nothing takes any time.
    """

    predicted: float
    measured: float
    least: float
    most: float
    deviation: float | None


class Emulated(Strict):
    """Queries over an emulated network: every link between roles held to a delay and a bandwidth in each
    direction. The first query, which finds nothing loaded, is not among them.

    `equal` says whether bytes and rounds of every query are those predicted.
    """

    round_trip_s: float
    bandwidth_bytes_per_s: float
    parties: str
    queries: int
    equal: bool
    offline: Timing
    online: Timing


class Secure(Strict):
    """Results of running `samples` test examples under MPC; `plaintext` is on the same examples.

    checked: against what values it was checked, before the run, that the model's fit fixed point.
    """

    samples: int
    accuracy: float
    plaintext: float
    agreement: float
    max_logit_error: float
    checked: str = "not recorded"


class Ranges(Strict):
    """What a model's values were on training texts, and whether fixed point holds them with the margin.

    violations: every value that does not fit, in words; then nothing was certified. entries: rows of `columns`, a quantity of a
    site's operations each: between what it lay, between what it may lie, and how many times it could double (or halve) before it
    is beyond that.
    """

    fits: bool
    summary: str = ""
    inputs: int = 0
    margin_bits: float = 0.0
    spare_bits: float | None = None
    columns: list[str] = Field(default_factory=list)
    entries: list[list[Any]] = Field(default_factory=list)
    violations: list[str] = Field(default_factory=list)

    def tightest(self, count: int) -> list[dict[str, Any]]:
        """Entries by column, those with the fewest bits to spare first."""
        rows = [dict(zip(self.columns, row, strict=True)) for row in self.entries]
        limited = [row for row in rows if row["spare_bits"] is not None]
        return sorted(limited, key=lambda row: (row["spare_bits"], row["site"]))[:count]


class Score(Strict):
    """One metric on two splits. `validation` chooses; `test` is looked at once, after the choice."""

    validation: float | None = None
    test: float | None = None


class TrainingPoint(Strict):
    """One line of a training log, mostly a validation: its score, and agreement with and divergence from the
    teacher."""

    stage: str
    epoch: float
    loss: float | None = None
    validation: float | None = None
    agreement: float | None = None
    divergence: float | None = None
    note: str | None = None


class Candidate(Strict):
    """A model that was trained whole: the teacher, a baseline or a student from the front.

    emulated: by network profile. settings: of its training, every one of them.
    """

    id: str
    title: str
    architecture: dict[str, str] = Field(default_factory=dict)
    structure: dict[str, Any] = Field(default_factory=dict)
    proxy: dict[str, float] = Field(default_factory=dict)
    accuracy: Score = Field(default_factory=Score)
    agreement: Score = Field(default_factory=Score)
    within_limits: bool | None = None
    predicted: Predicted | None = None
    measured: Measured | None = None
    equal: bool | None = None
    emulated: dict[str, Emulated] = Field(default_factory=dict)
    secure: Secure | None = None
    ranges: Ranges | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    training: list[TrainingPoint] = Field(default_factory=list)
    train_seconds: float | None = None


class FrontPoint(Strict):
    """An untrained candidate as the search saw it. `proxy` holds its scores, e.g. {"kl": 0.03}.

    difference: online bytes, rounds and seconds predicted for the whole model minus those of the price table's sum, where
    both are known; `predicted` is the whole model's, then.
    fixed_point: "agreement" of fixed point with the student's own float, "max_logit_error", "items", where scored.
    dropped: why the point is not on the front though nothing dominates it.
    """

    id: str
    architecture: dict[str, str]
    structure: dict[str, Any] = Field(default_factory=dict)
    proxy: dict[str, float]
    predicted: Predicted
    name: str | None = None
    on_front: bool = True
    difference: dict[str, float] = Field(default_factory=dict)
    feasible: bool = True
    fixed_point: dict[str, float] = Field(default_factory=dict)
    dropped: str | None = None


class Record(Strict):
    """A whole run. `front` has the non-dominated points, `trials` every point the search tried.

    choice: "reason", "ranking", "kept", and "tests", each student's paired test against the teacher on validation data.
    not_offered: site -> variant -> why fixed point cannot hold it there.
    """

    schema_version: int = SCHEMA_VERSION
    name: str
    title: str = ""
    description: str = ""
    created: str
    command: str
    recipe: dict[str, Any]
    recipe_text: str = ""
    versions: dict[str, str]
    hardware: dict[str, Any]
    seeds: dict[str, int]
    task: dict[str, Any]
    secure: dict[str, Any]
    limits: dict[str, Any] = Field(default_factory=dict)
    disclosure: list[str] = Field(default_factory=list)
    teacher: Candidate
    baselines: dict[str, Candidate] = Field(default_factory=dict)
    front: list[FrontPoint] = Field(default_factory=list)
    trials: list[FrontPoint] = Field(default_factory=list)
    candidates: list[Candidate] = Field(default_factory=list)
    chosen: str | None = None
    choice: dict[str, Any] = Field(default_factory=dict)
    not_offered: dict[str, dict[str, str]] = Field(default_factory=dict)
    contract: dict[str, Any] = Field(default_factory=dict)
    export: dict[str, Any] = Field(default_factory=dict)
    stage_seconds: dict[str, float] = Field(default_factory=dict)

    def find(self, identifier: str) -> Candidate:
        """The teacher, a baseline or a candidate by its id. Raises KeyError with the ids there are."""
        models = self.models()
        for model in models:
            if model.id == identifier:
                return model
        raise KeyError(f"no model {identifier!r} in this record; it has {', '.join(m.id for m in models)}")

    def models(self) -> list[Candidate]:
        """Every trained model once: the teacher first, then the baselines, then the candidates."""
        return [self.teacher, *self.baselines.values(), *self.candidates]

    def headline(self) -> list[Candidate]:
        """The rows of the summary: teacher, baselines, chosen student."""
        rows = [self.teacher, *self.baselines.values()]
        if self.chosen is not None and self.chosen not in {row.id for row in rows}:
            rows.append(self.find(self.chosen))
        return rows


def write(record: Record, path: str | Path) -> None:
    """Write `record` as JSON to `path`, whole or not at all."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, target)


def read(path: str | Path) -> Record:
    """Read a record. Raises ValueError that names the file when it isn't one."""
    target = Path(path)
    try:
        return Record.model_validate_json(target.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"no record at {target}: run the recipe first") from None
    except ValueError as error:
        raise ValueError(f"{target} is not a record of schema {SCHEMA_VERSION}: {error}") from error


def versions(names: Iterable[str] = LIBRARIES) -> dict[str, str]:
    """Installed versions of `names` and of Python; a distribution that isn't installed is left out."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """The machine as a result should state it: system, processor, usable cores, memory in bytes."""
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": len(affinity(0)) if affinity else os.cpu_count() or 1,
        "memory_bytes": _memory(),
        "python": sys.implementation.name,
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux: the platform module's answer is what there is
    return platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
