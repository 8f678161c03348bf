"""Sites: the places of a Hugging Face model where a variant may stand.

They are found by running the model once on the meta device (no weights are read, nothing is computed) and
watching which modules are called with what shapes. Nothing is assumed of a family except that its attention
goes through transformers' attention interface and that its activations are modules of `ACT2FN`.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from distill import variants
from distill.attention import attach
from distill.errors import UnknownVariant, UnsupportedModel, suggestion
from distill.kinds import KINDS, SiteKind, layer_of


@dataclass(frozen=True)
class Site:
    """One replaceable function of a model.

    Attributes:
        name: path of the module that holds the variant, such as
            "bert.encoder.layer.0.attention.self.softmax".
        kind: "softmax", "activation", "norm".
        layer: number of the layer, None outside numbered layers.
        variants: names of the variants that may stand here, "exact" first.
        signature: equal for sites of equal kind, exact function and shape: they cost the same.
        size: heads (softmax) or channels (others).
    """

    name: str
    kind: str
    layer: int | None
    variants: tuple[str, ...]
    signature: str
    size: int


def copy_model(
    model: PreTrainedModel, *, device: str | None = None, share_weights: bool = False
) -> PreTrainedModel:
    """Deep copy of a model; with `share_weights`, parameters and buffers are the same tensors; with
    device="meta", empty ones."""
    memo: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        if device == "meta":
            empty = torch.empty_like(tensor, device="meta")
            memo[id(tensor)] = nn.Parameter(empty) if isinstance(tensor, nn.Parameter) else empty
        elif share_weights:
            memo[id(tensor)] = tensor
    return copy.deepcopy(model, memo)


def probe_inputs(model: PreTrainedModel, sequence_length: int = 8, device: str = "meta") -> dict[str, Tensor]:
    """Inputs of one example, enough to run `model` once: input_ids [1, sequence_length] or pixel_values [1,
    C, H, W].

    Raises UnsupportedModel for a main input it does not know; pass `example_inputs` to `find_sites` then.
    """
    config = model.config
    ids = torch.zeros(1, sequence_length, dtype=torch.long, device=device)
    if model.main_input_name == "input_ids":
        # The mask is given because some models otherwise read the values of input_ids to warn about padding.
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return {**inputs, "decoder_input_ids": ids} if config.is_encoder_decoder else inputs
    if model.main_input_name == "pixel_values":
        size = config.image_size
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        return {"pixel_values": torch.zeros(1, config.num_channels, height, width, device=device)}
    raise UnsupportedModel(
        f"{type(model).__name__}: main input {model.main_input_name!r} is not known "
        "(input_ids and pixel_values are); give example_inputs"
    )


def watched(model: PreTrainedModel, kinds: Iterable[SiteKind]) -> list[tuple[str, SiteKind, nn.Module]]:
    """(path, kind, module) of every candidate site of a model prepared by `attach`."""
    chosen = list(kinds)
    return [
        (path, kind, module)
        for path, module in model.named_modules()
        for kind in chosen
        if kind.matches(path, module)
    ]


def find_sites(
    model: PreTrainedModel,
    kinds: Iterable[str] | None = None,
    example_inputs: Mapping[str, Tensor] | None = None,
) -> list[Site]:
    """Sites of `model` in the order in which they are first called.

    Args:
        model: any transformers model on the attention interface, teacher or student, on any device.
        kinds: kinds to look for; by default those with anything to choose (more variants than "exact").
        example_inputs: one batch of inputs, needed only where `probe_inputs` does not know them.

    Raises:
        UnsupportedModel: no attention interface, or the model cannot run on the meta device.
        UnknownVariant: an unknown kind.
    """
    if kinds is None:
        chosen = [kind for kind in KINDS.values() if len(variants.names(kind.name)) > 1]
    else:
        for name in kinds:
            if name not in KINDS:
                raise UnknownVariant(f"unknown kind of site {name!r}{suggestion(name, KINDS)}")
        chosen = [KINDS[name] for name in kinds]
    probe = copy_model(model, device="meta").eval()
    attach(probe)
    inputs = (
        probe_inputs(model)
        if example_inputs is None
        else {k: v.to("meta") for k, v in example_inputs.items()}
    )
    found: dict[str, Site] = {}

    def watch(path: str, kind: SiteKind, module: nn.Module) -> None:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            if path not in found:
                shape = "x".join(str(length) for length in args[0].shape)
                found[path] = Site(
                    name=path,
                    kind=kind.name,
                    layer=layer_of(path),
                    variants=variants.names(kind.name),
                    signature=f"{kind.name}:{type(module).__name__}:{shape}",
                    size=kind.size(args[0]),
                )

        module.register_forward_hook(hook)

    for path, kind, module in watched(probe, chosen):
        watch(path, kind, module)
    try:
        with torch.no_grad():
            probe(**inputs)
    except (NotImplementedError, RuntimeError, ValueError) as error:
        raise UnsupportedModel(
            f"{type(model).__name__} cannot be run on the meta device to find its sites: {error}"
        ) from error
    return list(found.values())
