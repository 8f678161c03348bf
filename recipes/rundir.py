"""The run directory: what each step has left behind, and for which inputs.

A step is finished when its marker names the hash of its present inputs and its outputs have the content that the
marker noted. The marker is written last, by a rename, so a kill at any moment leaves a step finished or not. A step
that was begun for the same inputs keeps its folder, from which it resumes; one that was begun for others, or whose
outputs have changed since, starts from an empty folder.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipes.errors import RecipeError
from recipes.files import digest, fingerprint, read_json, write_json
from recipes.progress import Callback

STATE = ".state"

LIBRARIES = ("torch", "transformers", "tokenizers", "datasets", "numpy", "optuna")
"""Libraries whose version may change a result: it is part of every key."""


def library_versions() -> dict[str, str]:
    """Installed versions of `LIBRARIES`; asking imports none of them."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


@dataclass(frozen=True)
class Step:
    """One resumable piece of work, a function from files to files.

    name: unique in the run, such as "distill/1f2e…".
    title: what the user reads.
    inputs: JSON-like; what beside the steps of `needs` decides the result.
    needs: names of steps whose results are read.
    folder: the step's own folder in the run directory; emptied when its inputs change. Everything that it holds
        at the end is an output.
    outputs: files, relative to the run directory, that it leaves, there or elsewhere.
    work: called with the progress callback.
    """

    name: str
    title: str
    inputs: Any
    needs: Sequence[str]
    folder: str | None
    outputs: Sequence[str]
    work: Callable[[Callback], None] = field(repr=False)


class RunDirectory:
    """`path` and the markers in it. `version`, and those of the libraries, are part of every key: a new version
    makes everything anew."""

    def __init__(self, path: Path, version: str) -> None:
        self.path = path
        self.version = version
        self.keys: dict[str, str] = {}
        self._libraries = library_versions()

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def prepare(self) -> None:
        """Make the directory and make sure that it can be written to. Raises RecipeError if not."""
        try:
            (self.path / STATE).mkdir(parents=True, exist_ok=True)
            probe = self.path / STATE / f"probe.{os.getpid()}"
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            raise RecipeError(
                f"the run directory {self.path} cannot be written to: {error.strerror or error}"
            ) from None

    def key(self, step: Step) -> str:
        """Hash of everything that the step's result depends on. Its needs must have been asked for before."""
        upstream = {name: self.keys[name] for name in step.needs}
        versions = {"sordino": self.version, **self._libraries}
        return digest({"versions": versions, "step": step.name, "inputs": step.inputs, "needs": upstream})

    def finished(self, step: Step) -> bool:
        """Whether the step's results are there for its present inputs; its key is known to later steps from
        here on."""
        key = self.keys[step.name] = self.key(step)
        marker = read_json(self._marker(step.name))
        if not isinstance(marker, Mapping) or marker.get("key") != key:
            return False
        return not self.changed(step)

    def changed(self, step: Step) -> list[str]:
        """Outputs of a step that was done which are missing, or are not what it left."""
        marker = read_json(self._marker(step.name))
        noted = marker.get("outputs") if isinstance(marker, Mapping) else None
        if not isinstance(noted, Mapping):
            return []
        wanted = {name: None for name in step.outputs} | dict(noted)
        return [name for name, content in wanted.items() if self._content(name) != content]

    def _content(self, name: str) -> str | None:
        path = self.path / name
        return fingerprint(path) if path.is_file() else None

    def _left(self, step: Step) -> dict[str, str]:
        """Names and contents of everything that a step has left."""
        folder = [] if step.folder is None else sorted((self.path / step.folder).rglob("*"))
        names = [str(path.relative_to(self.path)) for path in folder if path.is_file()]
        return {name: fingerprint(self.path / name) for name in dict.fromkeys([*step.outputs, *names])}

    def run(self, step: Step, progress: Callback) -> None:
        """Do the step's work, resuming what an earlier process began for the same inputs."""
        key = self.keys[step.name]
        begun = self._marker(step.name, "begun")
        earlier = read_json(begun)
        resumes = isinstance(earlier, Mapping) and earlier.get("key") == key and not self.changed(step)
        if step.folder is not None:
            if not resumes:
                shutil.rmtree(self.path / step.folder, ignore_errors=True)
            (self.path / step.folder).mkdir(parents=True, exist_ok=True)
        self._marker(step.name).unlink(missing_ok=True)
        write_json(begun, {"key": key})
        started = time.monotonic()
        step.work(progress)
        missing = [output for output in step.outputs if not (self.path / output).exists()]
        assert not missing, f"step {step.name} left no {', '.join(missing)}"
        seconds = time.monotonic() - started
        noted = {"key": key, "seconds": seconds, "resumed": resumes, "outputs": self._left(step)}
        write_json(self._marker(step.name), noted)

    def seconds(self, names: Sequence[str]) -> float:
        """Seconds that these steps took when they were done (a resumed one: since the resumption)."""
        markers = [read_json(self._marker(name)) for name in names]
        return sum(float(m["seconds"]) for m in markers if isinstance(m, Mapping))

    def _marker(self, name: str, kind: str = "done") -> Path:
        return self.path / STATE / f"{name.replace('/', '.')}.{kind}.json"
