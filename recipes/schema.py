"""A recipe: every key, its type, its default and its meaning. docs/recipe_schema.md is written from here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from recipes.errors import suggestion

Share = Annotated[float, Field(gt=0, lt=1)]
Epochs = Annotated[float, Field(ge=0)]


class Strict(BaseModel):
    """A mapping whose keys are all known. Values are not coerced: the text "3" is no number."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Data(Strict):
    """Where the examples come from."""

    source: str = Field(
        description=(
            "`hub:<data set>`, `package:<distribution>/<path inside it>`, or a path from the recipe's folder: a file, "
            "or a directory that `datasets` reads"
        )
    )
    format: Literal["lines", "csv", "tsv", "json", "parquet", "dataset", "hub"] | None = Field(
        default=None,
        description=(
            "by default what the source's name says. `lines`: one example a line, taken apart by `pattern`; `csv`, "
            "`tsv`: columns with a header; `json`: JSON lines, or a list of objects; `dataset`: a directory written "
            "by `save_to_disk`, or one of files such as train.csv and test.csv"
        ),
    )
    config: str | None = Field(
        default=None, description="configuration of a hub data set or directory that has several"
    )
    revision: str | None = Field(default=None, description="branch, tag or commit of a hub data set")
    splits: dict[Literal["train", "validation", "test"], str] | None = Field(
        default=None,
        description="official splits to use, where their names don't say it: `{validation: validation_matched}`",
    )
    text: str | None = Field(
        default=None, description="column that holds the text; by default guessed from the usual names"
    )
    text_pair: str | None = Field(
        default=None, description="column of the second text, where `text` is the first of a pair"
    )
    label: str | None = Field(
        default=None, description="column that holds the label; by default guessed from the usual names"
    )
    hidden: list[str] | None = Field(
        default=None,
        description="labels that mean that there is none; empty ones, and -1 of a class label, do anyway",
    )
    pattern: str | None = Field(
        default=None,
        description="for `lines`: a regular expression with the groups `(?P<text>…)` and `(?P<label>…)`",
    )
    encoding: str = Field(default="utf-8", description="encoding of the file")
    quoting: bool = Field(default=True, description="whether double quotes quote a field (csv, tsv)")
    threshold: float | None = Field(
        default=None, description="classes from numbers: a label above it is `positive`, any other `negative`"
    )
    validation: Share = Field(
        default=0.1,
        description="share of the examples that choose (search, early stopping, selection), without official split",
    )
    test: Share = Field(
        default=0.1,
        description="share of the examples that are looked at once, at the end, without official split",
    )

    limit: int | None = Field(
        default=None, ge=1, description="keep at most this many examples of each split, for trials"
    )

    @field_validator("pattern")
    @classmethod
    def _pattern(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            groups = re.compile(value).groupindex
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        missing = [name for name in ("text", "label") if name not in groups]
        if missing:
            raise ValueError(
                f"the expression has no group {' and no group '.join(f'(?P<{m}>…)' for m in missing)}"
            )
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Data:
        if self.text_pair is not None and self.text is None:
            raise ValueError("`text_pair` is the second text of a pair: give `text`, the first, as well")
        if self.format == "lines" and self.pattern is None:
            raise ValueError("format 'lines' needs a `pattern` with the groups (?P<text>…) and (?P<label>…)")
        if self.format != "lines" and self.pattern is not None:
            raise ValueError(f"`pattern` is for format 'lines', which has to be given, not {self.format!r}")
        if self.validation + self.test >= 0.9:
            raise ValueError(
                "`validation` and `test` together leave less than a tenth of the examples for training"
            )
        return self


class Task(Strict):
    """What the model is to do, and on which data."""

    kind: Literal["classification", "regression"] = Field(
        default="classification", description="what a label is"
    )
    data: Data


CHECKPOINT_SECONDS = Field(
    default=30.0,
    ge=0,
    description=(
        "least time between checkpoints; it grows where they take more than a twentieth of the training. 0 writes one "
        "after each step"
    ),
)


class TeacherTraining(Strict):
    """Fine-tuning of the teacher. A head for other classes than the task's gives way to a new one."""

    epochs: Epochs = Field(
        default=3, description="passes over the training split; 0 takes the checkpoint as it is"
    )
    lr: float = Field(default=5e-5, gt=0, description="peak learning rate, linear warm-up and decay")
    batch_size: int = Field(default=32, ge=1)
    warmup: float = Field(default=0.1, ge=0, lt=1, description="share of the steps in which the rate rises")
    weight_decay: float = Field(default=0.01, ge=0)
    clip: float = Field(default=1.0, gt=0, description="largest norm of a gradient")
    freeze_embeddings: bool = Field(default=True, description="leave the word embeddings as they are")
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="arithmetic of the training"
    )
    checkpoint_seconds: float = CHECKPOINT_SECONDS


class Teacher(Strict):
    """The model to compress, fine-tuned here if it has no head or `train` is given."""

    checkpoint: str = Field(
        description="a directory (from the recipe's folder), `package:<distribution>/<path>`, or a hub id"
    )
    task: Task
    train: TeacherTraining | None = Field(
        default=None,
        description=(
            "how the checkpoint is fine-tuned. Without this key a checkpoint that has a head for the task's classes "
            "is the teacher as it is, and one that has no head is fine-tuned by the defaults"
        ),
    )


class Secure(Strict):
    """The deployment that is optimised for: protocol, network and the shape of a query."""

    protocol: str = Field(default="dealer2pc", description="name of a protocol of the secure engine")
    network: str = Field(
        default="wan", description="network profile whose seconds the search minimises: a name or a YAML file"
    )
    networks: list[str] = Field(default=["lan", "wan"], description="profiles whose seconds are reported")
    device: str = Field(
        default="auto",
        description="device profile for compute: auto for this machine, measured once in 20 seconds or less and kept; "
        "else a name or a file written by `sordino calibrate`",
    )
    sequence_length: int = Field(default=128, ge=2, description="tokens a query is padded or cut to")
    batch: int = Field(default=1, ge=1, description="examples in one query")
    range_samples: int = Field(
        default=256,
        ge=8,
        description="training texts on which every trained model's values are looked at: its certificate, and the ranges of its program",
    )
    range_margin_bits: float = Field(
        default=2.0,
        ge=1.0,
        le=16.0,
        description="how many times values may double beyond any met there before they leave fixed point",
    )

    @field_validator("protocol")
    @classmethod
    def _protocol(cls, value: str) -> str:
        from recipes.vocabulary import protocols

        return _known(value, protocols(), "protocol")

    @field_validator("network", "device")
    @classmethod
    def _profile(cls, value: str, info: pydantic.ValidationInfo) -> str:
        return _profile(value, str(info.field_name))

    @field_validator("networks")
    @classmethod
    def _profiles(cls, value: list[str]) -> list[str]:
        return [_profile(name, "network") for name in value]

    @property
    def priced(self) -> list[str]:
        """Every profile to price on: `networks`, with `network` among them."""
        return list(dict.fromkeys([*self.networks, self.network]))


class Limits(Strict):
    """What a student may cost at most, online and a query. Candidates beyond a limit are never chosen."""

    latency_s: float | None = Field(default=None, gt=0, description="predicted seconds on `secure.network`")
    online_bytes: float | None = Field(default=None, gt=0, description="bytes that one party sends")
    rounds: float | None = Field(default=None, gt=0, description="rounds on the critical path")
    baseline: Literal["teacher", "mpcformer"] | None = Field(
        default=None, description="no more online bytes and no more rounds than this named baseline"
    )


class Search(Strict):
    """The search over architectures: what may stand at each site, how long to look, and what to look for."""

    trials: int = Field(
        default=200, ge=1, description="architectures that the study scores, without training them"
    )
    sites: dict[str, list[str]] = Field(
        default={"softmax": ["exact", "2quad", "power4"], "activation": ["exact", "quad_channel"]},
        description="for each kind of site the variants that may stand there",
    )
    only: dict[str, list[str]] = Field(
        default={},
        description="narrower lists for single sites, by name or pattern such as `*.layer.0.*.softmax`",
    )
    limits: Limits = Limits()
    objectives: list[
        Literal["kl", "seconds", "online_bytes", "online_rounds", "offline_bytes", "offline_rounds"]
    ] = Field(
        default=["kl", "seconds"],
        description=(
            "what is minimised: `kl`, the divergence from the teacher, first, and then one or more predicted costs; "
            "`seconds` are those of an online query on `secure.network`"
        ),
    )
    calibration_samples: int = Field(
        default=512, ge=8, description="unlabelled training examples that calibrate variants"
    )
    validation_samples: int = Field(
        default=256, ge=8, description="validation examples that score a candidate"
    )
    fixed_point_samples: int = Field(
        default=96,
        ge=0,
        description=(
            "validation examples on which every point of the front is answered in fixed point; one that does not predict "
            "as in float on 99 % of them is dropped. 0 leaves that out, and the report says so"
        ),
    )
    candidates: int = Field(
        default=3,
        ge=1,
        description="points of the front that are distilled: those that together dominate most, hopeless ones left out",
    )

    @field_validator("sites")
    @classmethod
    def _sites(cls, value: dict[str, list[str]]) -> dict[str, list[str]]:
        from recipes.vocabulary import kinds, variants

        problems = []
        for kind, names in value.items():
            if kind not in kinds():
                problems.append(f"unknown kind of site {kind!r}{suggestion(kind, kinds())}")
                continue
            if not names:
                problems.append(f"{kind}: the list is empty; allowed: {', '.join(variants(kind))}")
            known = variants(kind)
            problems += [
                f"{kind}: unknown variant {n!r}{suggestion(n, known)}" for n in names if n not in known
            ]
        if not value:
            problems.append(f"no kind of site is named; allowed: {', '.join(kinds())}")
        if problems:
            raise ValueError("\n".join(problems))
        return value

    @field_validator("objectives")
    @classmethod
    def _objectives(cls, value: list[str]) -> list[str]:
        if value[:1] != ["kl"] or len(value) < 2 or len(set(value)) < len(value):
            raise ValueError(
                "the search trades closeness against cost: 'kl' first, then one or more costs, each once"
            )
        return value


class Distillation(Strict):
    """Training of the students (MPCFormer's two stages by default)."""

    layerwise_epochs: Epochs = Field(
        default=2, description="stage 1: hidden states and attention scores of every layer"
    )
    prediction_epochs: Epochs = Field(default=1, description="stage 2: the teacher's predictions")
    lr: float = Field(default=5e-5, gt=0, description="learning rate of stage 1")
    prediction_lr: float = Field(default=1e-5, gt=0, description="learning rate of stage 2")
    range_penalty: float = Field(
        default=0.01,
        ge=0,
        description=(
            "weight of the squared bits by which the replacements' values come closer than two bits to what fixed point "
            "holds; 0 leaves it out"
        ),
    )
    coefficient_lr: float = Field(
        default=10.0,
        gt=0,
        description="rate of the replacements' own coefficients, as a multiple of the stage's",
    )
    batch_size: int = Field(default=32, ge=1)
    warmup: float = Field(
        default=0.1, ge=0, lt=1, description="share of a stage's steps in which the rate rises"
    )
    weight_decay: float = Field(default=0.01, ge=0)
    clip: float = Field(default=1.0, gt=0, description="largest norm of a gradient")
    losses: Literal["two_stage", "joint"] = Field(
        default="two_stage", description="stages in a row, or one loss of both"
    )
    freeze_embeddings: bool = Field(default=True, description="leave the word embeddings as they are")
    dropout: bool = Field(default=False, description="drop-out in the student while it trains")
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="arithmetic of the training"
    )
    cache_bytes: int = Field(
        default=2_000_000_000,
        ge=0,
        description=(
            "most that stored hidden states and scores of the teacher take on disk; those of the texts that don't fit "
            "are computed again at each step. Logits are always stored"
        ),
    )
    checkpoint_seconds: float = CHECKPOINT_SECONDS


class PublishedTraining(Strict):
    """How much of a published training is done. Its losses, rates and other settings are those published."""

    budget: float | None = Field(
        default=4.0,
        gt=0,
        description=(
            "epochs of both stages together at most, as a multiple of those of one student of `distill`; stages are "
            "shortened in proportion. null trains as long as published for a data set of this size"
        ),
    )
    layerwise_epochs: Epochs | None = Field(
        default=None, description="epochs of stage 1, in place of what follows from `budget`"
    )
    prediction_epochs: Epochs | None = Field(
        default=None, description="epochs of stage 2, in place of what follows from `budget`"
    )


class OwnTraining(Strict):
    """How a baseline is trained that is trained as the students are, where it differs from `distill`."""

    layerwise_epochs: Epochs | None = Field(
        default=None, description="as in `distill`, whose value is the default"
    )
    prediction_epochs: Epochs | None = Field(
        default=None, description="as in `distill`, whose value is the default"
    )


class Baselines(Strict):
    """Fixed recipes that are run on the same model, data and engine. The teacher always is one."""

    mpcformer: PublishedTraining | None = Field(
        default=PublishedTraining(),
        description="MPCFormer as published: Quad and 2Quad everywhere, its own training; null leaves it out",
    )
    mpcformer_form: OwnTraining | None = Field(
        default=OwnTraining(),
        description=(
            "MPCFormer's form with our training: Quad and 2Quad everywhere, not calibrated, trained by `distill`. What "
            "it gains on `mpcformer` comes from the training, what a student gains on it from calibration and search; "
            "null leaves it out"
        ),
    )


class Verify(Strict):
    """The run under MPC that checks accuracy and cost."""

    samples: int = Field(default=64, ge=1, description="test examples that are answered under MPC")
    parties: Literal["processes", "threads"] = Field(
        default="processes", description="`processes` is a real run over loopback; `threads` a simulation"
    )
    candidates: int = Field(
        default=1, ge=1, description="students that are verified: the chosen one and the next best"
    )
    emulate: list[str] = Field(
        default=[],
        description=(
            "network profiles, by name or YAML file, that this machine then imitates: each verified model also "
            "answers queries over them, timed against the predicted seconds"
        ),
    )
    timeout_s: float = Field(
        default=30.0,
        gt=0,
        allow_inf_nan=False,
        description=(
            "seconds without progress of a role after which a query is given up, with an error that names role and phase; a role that "
            "computes makes progress"
        ),
    )
    emulated_samples: int = Field(
        default=3, ge=1, description="test examples that are answered over each network of `emulate`"
    )
    max_drop: float = Field(
        default=0.02,
        ge=0,
        lt=1,
        description=(
            "contract: how far a student's accuracy may lie below the teacher's. The cheapest student is chosen for which "
            "the validation examples show that it keeps this, by a paired one-sided test. A tighter bound than the default "
            "can seldom be shown with a few hundred examples"
        ),
    )
    level: Share = Field(
        default=0.95,
        description="confidence of that test, over all students together: 1 less the rate of false acceptance",
    )

    @field_validator("emulate")
    @classmethod
    def _emulate(cls, value: list[str]) -> list[str]:
        return list(dict.fromkeys(_profile(name, "network") for name in value))


class Export(Strict):
    """The form in which the chosen student is handed over."""

    formats: list[Literal["transformers", "torch_export"]] = Field(
        default=["transformers"],
        description="`transformers`: a directory for from_pretrained; `torch_export`: program.pt2",
    )


class Report(Strict):
    """What the report says beside the numbers."""

    title: str | None = Field(default=None, description="heading of the report, the recipe's name by default")
    description: str = Field(default="", description="a sentence or two under the heading")


class Recipe(Strict):
    """Every key has a section below. Only `teacher` has to be given."""

    name: str | None = Field(
        default=None, description="name of the run directory under results/; the file's name by default"
    )
    seed: int = Field(default=0, ge=0, description="the one seed that all randomness of the run derives from")
    teacher: Teacher
    secure: Secure = Secure()
    search: Search = Search()
    distill: Distillation = Distillation()
    baselines: Baselines = Baselines()
    verify: Verify = Verify()
    export: Export = Export()
    report: Report = Report()

    @field_validator("name")
    @classmethod
    def _name(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
            raise ValueError(
                f"{value!r} names a directory, so only letters, digits, '.', '_' and '-' are allowed"
            )
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        limit = self.search.limits.baseline
        if limit == "mpcformer" and self.baselines.mpcformer is None:
            raise ValueError("search.limits.baseline is 'mpcformer', but baselines.mpcformer is null")
        return self


def _known(value: str, allowed: Sequence[str], what: str) -> str:
    if value not in allowed:
        raise ValueError(f"unknown {what} {value!r}{suggestion(value, allowed)}")
    return value


def _profile(value: str, what: str) -> str:
    """A profile is a registered name or a YAML file."""
    from recipes.vocabulary import devices, networks

    if value.endswith((".yaml", ".yml")):
        if not Path(value).is_file():
            raise ValueError(f"no {what} profile file {value!r}")
        return value
    return _known(value, networks() if what == "network" else devices(), f"{what} profile")


def dump(recipe: Recipe) -> dict[str, Any]:
    """The whole recipe as JSON-like data, defaults included."""
    return recipe.model_dump(mode="json")


def section(recipe: Recipe, *names: str) -> dict[str, Any]:
    """Some of a recipe's sections, as a stage's inputs: a change elsewhere leaves the stage's hash as it
    is."""
    whole = dump(recipe)
    return {name: whole[name] for name in names}
