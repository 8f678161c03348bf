"""`sordino cost --sweep`: the same question for several values of one figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from recipes.costing import Models, Setting, answer, at_link
from recipes.errors import RecipeError, suggestion
from recipes.progress import Callback
from recipes.subjects import Subject


@dataclass(frozen=True)
class Parameter:
    """A figure that can be swept. `kind` reads a value; `least` is allowed itself unless `above`."""

    title: str
    kind: type[int] | type[float]
    least: float
    above: bool
    set: Callable[[Setting, Any], Setting]

    @property
    def allowed(self) -> str:
        number = "a whole number" if self.kind is int else "a number"
        return f"{number} above {self.least:g}" if self.above else f"{number}, {self.least:g} or more"

    def read(self, text: str) -> int | float | None:
        """The value; None if it is not allowed."""
        try:
            value = self.kind(text)
        except ValueError:
            return None
        fits = value > self.least if self.above else value >= self.least
        return value if fits and value < float("inf") else None


PARAMETERS = {
    "sequence_length": Parameter(
        "tokens", int, 1, False, lambda setting, value: replace(setting, sequence_length=value)
    ),
    "batch": Parameter(
        "examples a query", int, 1, False, lambda setting, value: replace(setting, batch=value)
    ),
    "round_trip_s": Parameter(
        "round trip, seconds", float, 0, False, lambda setting, value: at_link(setting, round_trip_s=value)
    ),
    "bandwidth_bytes_per_s": Parameter(
        "bandwidth, bytes a second",
        float,
        0,
        True,
        lambda setting, value: at_link(setting, bandwidth_bytes_per_s=value),
    ),
}


@dataclass(frozen=True)
class Sweep:
    """A figure's name in PARAMETERS and its values, in the order given."""

    name: str
    values: tuple[int | float, ...]


def parse(text: str) -> Sweep:
    """NAME=value,value,… . Raises RecipeError that names the value and what is allowed."""
    name, equals, listed = text.partition("=")
    name = name.strip().replace("-", "_")
    if not equals or name not in PARAMETERS:
        raise RecipeError(
            f"--sweep {text!r}: {name!r} cannot be swept{suggestion(name, PARAMETERS)}; "
            "such as sequence_length=32,64,128"
            if equals
            else f"--sweep {text!r}: NAME=VALUE,VALUE,… is needed, such as sequence_length=32,64,128; NAME is one of "
            + ", ".join(PARAMETERS)
        )
    parameter = PARAMETERS[name]
    values = []
    for word in listed.split(","):
        value = parameter.read(word.strip())
        if value is None:
            raise RecipeError(f"--sweep {name}: {word.strip()!r} is not allowed: {parameter.allowed}")
        if value in values:
            raise RecipeError(f"--sweep {name}: {word.strip()} is given twice")
        values.append(value)
    if len(values) < 2:
        raise RecipeError(f"--sweep {name}: {listed.strip()!r} is one value; two or more are needed")
    return Sweep(name, tuple(values))


def sweep(
    models: Models, subjects: Sequence[Subject], setting: Setting, wanted: Sweep, progress: Callback
) -> dict[str, Any]:
    """The answers for each value, without their split by site; of two subjects, both.

    Raises what `answer` raises; a shape that a model does not take is refused before anything is counted.
    """
    settings = [PARAMETERS[wanted.name].set(setting, value) for value in wanted.values]
    for subject in subjects:
        for one in settings:
            try:
                shaped = models.shaped(subject.model, one.batch, one.sequence_length)
            except RecipeError as error:
                raise RecipeError(f"--sweep {wanted.name}: {error}") from None
            if wanted.name == "sequence_length" and not shaped.takes_tokens:
                raise RecipeError(f"--sweep sequence_length: the model {subject.model!r} takes no tokens")
    series = []
    done, total = 0, len(subjects) * len(settings)
    for subject in subjects:
        points = []
        for value, one in zip(wanted.values, settings, strict=True):
            progress(done, total, f"{wanted.name} {value:g}, {subject.protocol}")
            found = answer(models, subject, one)
            del found["by_site"], found["device_profile"]
            points.append({wanted.name: value, **found})
            done += 1
        series.append({"model": subject.model, "protocol": subject.protocol, "points": points})
    progress(done, total, "done")
    about = {"sweep": {"parameter": wanted.name, "values": list(wanted.values)}}
    if len(series) > 1:
        return {
            "network": setting.network,
            "device": setting.device,
            "device_profile": setting.machine.source(),
            **about,
            "compare": series,
        }
    return {
        "model": series[0]["model"],
        "protocol": series[0]["protocol"],
        "network": setting.network,
        "device": setting.device,
        "device_profile": setting.machine.source(),
        **about,
        "points": series[0]["points"],
    }
