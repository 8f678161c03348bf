"""Surgery: a teacher and an architecture in, a student of the teacher's class out, no model code copied.

The student's state dict keeps Hugging Face's names, with the variants' tensors added. Its config carries,
under "sordino", the architecture and the modules to install, so that `restore` or an exported model can
rebuild it.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from distill import variants
from distill.architecture import Architecture
from distill.attention import install_modules
from distill.calibration import Calibration, calibrate
from distill.errors import CalibrationMissing, UnsupportedModel
from distill.sites import Site, copy_model, find_sites

CONFIG_VERSION = 1


def apply(
    teacher: PreTrainedModel,
    architecture: Architecture,
    calibration: Calibration | Iterable[Mapping[str, Tensor]] | None = None,
    *,
    share_weights: bool = False,
    sites: Iterable[Site] | None = None,
) -> PreTrainedModel:
    """Build the untrained student: a copy of `teacher` with the variants of `architecture` installed, in eval
    mode.

    Args:
        teacher: a transformers model on the attention interface, without variants of its own.
        calibration: statistics from `calibrate`, or batches (dicts of tensors) to calibrate on here; needed
            by calibrated variants.
        share_weights: let the student use the teacher's own weight tensors (for evaluation only: training
            would change both).
        sites: result of `find_sites(teacher)`, to save the 0.1 s of finding them again.

    Raises:
        UnknownSite, UnknownVariant: the architecture does not fit the model.
        CalibrationMissing: a calibrated variant is asked for and no calibration is given, or it lacks the
        site.
    """
    if getattr(teacher.config, "sordino", None) is not None:
        raise UnsupportedModel("apply needs the original teacher; this model already has variants installed")
    known = list(find_sites(teacher) if sites is None else sites)
    architecture.validate(known)
    needing = [s.name for s in known if variants.get(s.kind, architecture.variant(s.name)).needs_calibration]
    if calibration is not None and not isinstance(calibration, Calibration):
        calibration = calibrate(teacher, calibration) if needing else None
    if calibration is None and needing:
        raise CalibrationMissing(f"calibration is needed by the variants at: {', '.join(needing)}")
    student = copy_model(teacher, share_weights=share_weights)
    modules: dict[str, dict[str, Any]] = {}
    tensors: dict[str, dict[str, Tensor]] = {}
    for site in known:
        variant = variants.get(site.kind, architecture.variant(site.name))
        if variant.module is None or variant.name == "exact":
            continue  # the model's own module, or the exact softmax that `attach` puts everywhere
        modules[site.name] = {
            "kind": site.kind,
            "variant": variant.name,
            "class": variant.module.__name__,
            "arguments": variant.arguments(site.size),
        }
        if variant.needs_calibration:
            assert calibration is not None
            tensors[site.name] = calibration.fit(site.name, variant, site.size)
    student.config.sordino = {
        "version": CONFIG_VERSION,
        "base_class": type(teacher).__name__,
        "base_model_type": teacher.config.model_type,
        "architecture": architecture.to_dict(),
        "modules": modules,
    }
    install(student)
    for name, fitted in tensors.items():
        module = student.get_submodule(name)
        reference = next(student.parameters())
        module.load_state_dict({key: value.to(reference) for key, value in fitted.items()})
    return student.eval()


def install(model: PreTrainedModel) -> None:
    """Install, in place, the variants that `model.config.sordino` lists, with their initial tensors.

    Raises UnknownVariant for a variant that nothing has registered.
    """
    entries = model.config.sordino["modules"].values()
    chosen = [variants.get(entry["kind"], entry["variant"]).module for entry in entries]
    install_modules(model, {module.__name__: module for module in chosen if module is not None})


def architecture_of(model: PreTrainedModel) -> Architecture:
    """The architecture a student carries in its config; a model without variants is all exact."""
    carried = getattr(model.config, "sordino", None)
    return Architecture() if carried is None else Architecture.from_dict(carried["architecture"])


@torch.no_grad()
def constrain(model: PreTrainedModel) -> None:
    """Project the variants' coefficients back to where they are well defined, in place; called after each
    optimiser step."""
    for module in model.modules():
        project = getattr(module, "project", None)
        if callable(project):
            project()
