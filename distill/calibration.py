"""Calibration: one pass of the teacher over unlabelled batches, collecting what every variant needs at every
site."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from distill import variants
from distill.attention import attach
from distill.errors import CalibrationMissing, DistillError
from distill.kinds import KINDS, SiteKind
from distill.observers import Observer
from distill.sites import copy_model, watched
from distill.variants import Variant

Progress = Callable[[int, int, str], None]


class Calibration:
    """Statistics of a teacher by site. Fitted tensors of calibrated variants are computed once and kept.

    Attributes:
        statistics: site name -> named tensors; "range" (largest absolute input) is among them at every site.
    """

    def __init__(self, statistics: Mapping[str, Mapping[str, Tensor]]) -> None:
        """statistics: as collected by the observers of `distill.kinds`."""
        self.statistics = statistics
        self._fitted: dict[tuple[str, str, str, int], dict[str, Tensor]] = {}

    @property
    def ranges(self) -> dict[str, float]:
        """Largest absolute input seen at each site."""
        return {name: float(tensors["range"]) for name, tensors in self.statistics.items()}

    def fit(self, site: str, variant: Variant, size: int) -> dict[str, Tensor]:
        """State-dict tensors of a calibrated `variant` at `site`. Raises CalibrationMissing for a site never
        seen."""
        assert variant.fit is not None
        if site not in self.statistics:
            raise CalibrationMissing(
                f"the calibration has no statistics of site {site!r}, which {variant.name!r} needs"
            )
        place = (site, variant.kind, variant.name, size)
        if place not in self._fitted:
            self._fitted[place] = variant.fit(self.statistics[site], variant.arguments(size))
        return self._fitted[place]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, atomically."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        names = sorted(self.statistics)
        tensors = {
            f"{index}.{key}": value.contiguous()
            for index, name in enumerate(names)
            for key, value in self.statistics[name].items()
        }
        temporary = target.with_name(target.name + ".tmp")
        save_file(tensors, str(temporary), metadata={"sites": json.dumps(names)})
        os.replace(temporary, target)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Calibration":
        """Read what `save` wrote. Raises DistillError if the file is not a calibration."""
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            if "sites" not in metadata:
                raise DistillError(f"{path}: not a calibration file")
            names = json.loads(metadata["sites"])
            statistics: dict[str, dict[str, Tensor]] = {name: {} for name in names}
            for key in file.keys():  # noqa: SIM118  (safe_open has no iterator)
                index, field = key.split(".", 1)
                statistics[names[int(index)]][field] = file.get_tensor(key)
        return cls(statistics)


@torch.no_grad()
def calibrate(
    teacher: PreTrainedModel,
    batches: Iterable[Mapping[str, Tensor]],
    progress: Progress | None = None,
    extremes: Iterable[Mapping[str, Tensor]] = (),
) -> Calibration:
    """Run the teacher once over `batches` in eval mode and collect the statistics of every site of every
    kind.

    Args:
        teacher: a transformers model on the attention interface.
        batches: dicts of model inputs; "labels" is ignored; padding is left out by "attention_mask".
            About 512 short sentences are enough.
        progress: called as progress(done, total, message).
        extremes: batches of which only the extremes count, whatever is padding: a secure query is padded to its full
            length, and fixed point has to hold what padding leads to as well.
    """
    model = copy_model(teacher, share_weights=True).eval()
    attach(model)
    observers: dict[str, Observer] = {}
    tokens: list[Tensor | None] = [None]
    extending = False

    def watch(path: str, kind: SiteKind, module: nn.Module) -> None:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            observer = observers.setdefault(path, kind.observer(kind.size(args[0])))
            if extending:
                observer.extend(args)
            else:
                observer.update(args, output, tokens[0])

        module.register_forward_hook(hook)

    kinds = [kind for kind in KINDS.values() if kind.name in variants.kinds()]
    for path, kind, module in watched(model, kinds):
        watch(path, kind, module)
    listed = list(batches)
    if not listed:
        raise DistillError("calibration needs at least one batch")
    wide = list(extremes)
    for done, batch in enumerate([*listed, *wide]):
        extending = done >= len(listed)
        inputs = {key: value.to(teacher.device) for key, value in batch.items() if key != "labels"}
        mask = inputs.get("attention_mask")
        tokens[0] = None if mask is None else mask.to(torch.bool)
        model(**inputs)
        if progress is not None:
            progress(done + 1, len(listed) + len(wide), "calibrating")
    return Calibration({name: observer.statistics() for name, observer in observers.items()})
