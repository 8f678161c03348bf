"""The block library: every allowed variant of every site, made once, and one student whose sites are swapped.

Assembling a candidate by `distill.apply` copies the whole teacher. Here the copy is made once a variant
rank (first variants of all sites, second variants of all sites, …), the variant's module is taken out of
it, and from then on a candidate is a handful of attribute assignments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import distill
from distill import Architecture, Calibration, Site
from nas.files import digest
from nas.space import EXACT, choices

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class BlockLibrary:
    """A mutable student and the modules that can stand at its sites.

    teacher: the fine-tuned model; not changed.
    variants: site -> variants to hold; exact is always added.
    calibration: what calibrated variants need, as for `distill.apply`.
    device: where the student lives.

    `student` is in eval mode and without a key/value cache, and exact after construction. It may share the
    teacher's
    weights: for evaluation only.
    """

    def __init__(
        self,
        teacher: PreTrainedModel,
        variants: Mapping[str, Sequence[str]],
        calibration: Calibration | None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.sites: list[Site] = distill.find_sites(teacher)
        self._teacher, self._calibration, self._device = teacher, calibration, torch.device(device)
        # Weights are shared where the student stays on the teacher's device; moving it must not move the
        # teacher.
        self._share = all(tensor.device == self._device for tensor in teacher.parameters())
        wanted = {site.name: [v for v in variants.get(site.name, ()) if v != EXACT] for site in self.sites}
        self.student: PreTrainedModel = self._build(Architecture({}))
        self._modules: dict[str, dict[str, nn.Module]] = {
            name: {EXACT: self.student.get_submodule(name)} for name in wanted
        }
        for rank in range(max((len(names) for names in wanted.values()), default=0)):
            picked = {name: names[rank] for name, names in wanted.items() if rank < len(names)}
            donor = self._apply(Architecture(picked), share=True)
            for name, variant in picked.items():
                self._modules[name][variant] = donor.get_submodule(name).to(self._device)
        self.current = {name: EXACT for name in wanted}

    def _apply(self, architecture: Architecture, share: bool) -> PreTrainedModel:
        return distill.apply(
            self._teacher, architecture, calibration=self._calibration, share_weights=share, sites=self.sites
        )

    def _build(self, architecture: Architecture) -> PreTrainedModel:
        model = self._apply(architecture, self._share)
        if getattr(model.config, "use_cache", False):
            model.config.use_cache = False  # a cache would make one block's call change what another one sees
        if not self._share:
            torch.nn.Module.to(model, self._device)
        return model.eval()

    def corner(self, pick: int) -> Architecture:
        """The architecture with the first (0) or last (-1) variant held at every site, exact being the
        first.
        """
        return Architecture({name: list(held)[pick] for name, held in self._modules.items()})

    def assemble(self, architecture: Architecture) -> PreTrainedModel:
        """The student with these variants: the one mutable student, valid until the next call.

        An architecture with structural changes (fewer layers, heads, …) is no swap, and is built whole.
        Raises KeyError for a variant that the library was not made with.
        """
        if architecture.structure:
            return self._build(architecture)
        for name, variant in choices(architecture, self.sites).items():
            if self.current[name] != variant:
                self.student.set_submodule(name, self._modules[name][variant])
                self.current[name] = variant
        return self.student

    def modules(self) -> dict[str, dict[str, nn.Module]]:
        """site -> variant -> module of everything held but the model's own functions."""
        return {
            name: {variant: module for variant, module in held.items() if variant != EXACT}
            for name, held in self._modules.items()
        }

    def fingerprint(self) -> str:
        """A content hash of everything that decides a candidate's predictions, other than the variants'
        code.
        """
        self.assemble(Architecture({}))
        held = {
            name: {variant: _tensors(module) for variant, module in of_site.items()}
            for name, of_site in self._modules.items()
        }
        return digest(_tensors(self.student), held, _plain_config(self.student))


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _plain_config(model: PreTrainedModel) -> dict[str, Any]:
    """The model's configuration without what names a place on disk."""
    return {k: v for k, v in model.config.to_dict().items() if k not in ("_name_or_path", "sordino")}
