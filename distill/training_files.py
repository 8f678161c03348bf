"""The checkpoint of a training: one at a time, each file written beside its place and moved there.

`progress.json` names the others: `state-<n>.safetensors` and `optimizer-<n>.pt`, the model, AdamW's moments and the
state of the random generators; `best-<n>.safetensors`, written only when there is a better model.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from distill.checkpoints import write_json
from distill.errors import DistillError

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Stored:
    """A checkpoint that was read. `state`, `optimizer` and `random` are None once a training has finished."""

    progress: dict[str, Any]
    best: Tensors | None
    state: Tensors | None
    optimizer: dict[str, Any] | None
    random: Tensors | None


class TrainingFiles:
    """The checkpoint in `directory` of the training that `key` names."""

    def __init__(self, directory: Path, key: str) -> None:
        self.directory, self.key = directory, key
        self._number = 0
        self._best: str | None = None

    def read(self) -> Stored | None:
        """The checkpoint, if there is one. Raises DistillError if it is another training's."""
        path = self.directory / "progress.json"
        if not path.exists():
            return None
        stored = json.loads(path.read_text())
        if stored["key"] != self.key:
            raise DistillError(
                f"{self.directory}: holds another training (other data, model or settings); remove it first"
            )
        files = stored["files"]
        self._number, self._best = stored["number"], files["best"]
        best = None if self._best is None else load_file(self.directory / self._best)
        if files["state"] is None:
            return Stored(stored["progress"], best, None, None, None)
        extra = torch.load(self.directory / files["optimizer"], weights_only=True)
        state = load_file(self.directory / files["state"])
        return Stored(stored["progress"], best, state, extra["optimizer"], extra["random"])

    def write(
        self,
        progress: dict[str, Any],
        best: Tensors | None,
        state: Tensors | None,
        optimizer: dict[str, Any] | None,
        random: Tensors | None,
    ) -> int:
        """Replace the checkpoint; its size in bytes.

        best: the best model if it is another one than at the last call, else None.
        state, optimizer, random: None for a finished training.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        self._number += 1
        if best is not None:
            self._best = f"best-{self._number}.safetensors"
            _save(best, self.directory / self._best)
        files: dict[str, str | None] = {"best": self._best, "state": None, "optimizer": None}
        if state is not None:
            files["state"] = f"state-{self._number}.safetensors"
            files["optimizer"] = f"optimizer-{self._number}.pt"
            _save(state, self.directory / str(files["state"]))
            temporary = self.directory / f"{files['optimizer']}.tmp"
            torch.save({"optimizer": optimizer, "random": random}, temporary)
            os.replace(temporary, self.directory / str(files["optimizer"]))
        described = {"key": self.key, "number": self._number, "files": files, "progress": progress}
        write_json(self.directory / "progress.json", described)
        kept = {"progress.json", *(name for name in files.values() if name is not None)}
        for path in self.directory.iterdir():
            if path.name not in kept and path.name.startswith(("best-", "state-", "optimizer-")):
                path.unlink()
        return sum((self.directory / name).stat().st_size for name in kept)


def _save(tensors: Tensors, path: Path) -> None:
    """Safetensors, atomically."""
    temporary = path.with_name(path.name + ".tmp")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, str(temporary))
    os.replace(temporary, path)


def take_random(device: torch.device) -> Tensors:
    """State of the generators that a training on `device` draws from: the processor's, and the GPU's on one."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def put_random(state: Tensors, device: torch.device) -> None:
    """Set the generators to what `take_random` took. Raises DistillError for a state of another kind of device."""
    if ("cuda" in state) != (device.type == "cuda"):
        kind = "a GPU" if "cuda" in state else "the processor"
        raise DistillError(
            f"the training was begun on {kind} and cannot go on on {device.type}; remove it first"
        )
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
