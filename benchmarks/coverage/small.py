"""Small models of transformers' classes with random weights that matter, and inputs for them.

A class is built from its default configuration with the sizes changed. A configuration that is changed field by field often contradicts
itself, so `builds` yields several, the most demanding first; the first that builds and runs in floating point is taken. Which sizes are
demanding is drawn by the class's name: heads of an odd width, grouped heads, or one head.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

ROWS, LENGTH, WORDS, LAYERS = 3, 7, 99, 2
LARGEST = 70_000_000
"""Parameters of the largest model that is run: plain arithmetic of 64-bit integers takes seconds for more."""

STYLES: dict[str, dict[str, int]] = {
    "odd width": {"width": 36, "heads": 4, "groups": 2, "head": 9},
    "grouped heads": {"width": 48, "heads": 4, "groups": 2, "head": 12},
    "one head": {"width": 34, "heads": 1, "groups": 1, "head": 34},
    "plain": {"width": 64, "heads": 4, "groups": 4, "head": 16},
    "own heads": {"width": 64, "heads": 4, "groups": 4},
    "all layers": {"width": 64, "heads": 4, "groups": 4},
    "own width": {},
}
"""Sizes by name; what is left out keeps its default."""

_FIELDS: dict[str, tuple[str, ...]] = {
    "width": ("hidden_size", "d_model", "n_embd", "dim", "model_dim", "embed_dim", "emb_dim", "d_embed", "embedding_size",
              "d_latents"),
    "heads": (
        "num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads",
        "encoder_num_attention_heads", "num_self_attention_heads", "num_cross_attention_heads",
    ),
    "groups": ("num_key_value_heads", "num_kv_heads", "n_head_kv"),
    "head": ("head_dim", "d_kv", "d_head", "attention_head_size", "kv_channels"),
}  # fmt: skip
_INNER = ("intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "n_inner", "ffn_hidden_size", "d_inner",
          "hidden_dim", "moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size")  # fmt: skip
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "moe_topk", "moe_top_k", "moe_k", "top_k")
_DEPTHS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers", "num_encoder_layers",
           "num_decoder_layers", "encoder_n_layers", "num_block_layers", "num_hidden_blocks", "num_attention_blocks",
           "num_self_attends_per_block")  # fmt: skip


def style_of(name: str) -> list[str]:
    """The styles in the order in which a class is tried with them: the first of the three demanding ones is drawn by its name."""
    first = zlib.crc32(name.encode()) % 3
    names = list(STYLES)
    return [*names[first:3], *names[:first], *names[3:]]


def _changes(config: PretrainedConfig, style: dict[str, int] | None, image: int | None) -> dict[str, Any]:
    """Arguments that make a configuration like this one smaller, in its parts as well."""
    wanted: dict[str, int] = {}
    if style is not None:
        for kind, size in style.items():
            wanted |= dict.fromkeys(_FIELDS[kind], size)
        if "width" in style:
            wanted |= dict.fromkeys(_INNER, 2 * style["width"] + style["width"] % 8 // 4)
        if "head" in style:
            wanted["rotary_dim"] = style["head"] // 4 * 2
        wanted |= {"vocab_size": WORDS, "entity_vocab_size": WORDS, "n_group": 1, "topk_group": 1}
    if image is not None:
        wanted["image_size"] = image
    most = (dict.fromkeys(_DEPTHS, LAYERS) if style is not STYLES["all layers"] else {}) | (
        dict.fromkeys(_EXPERTS, 4) | dict.fromkeys(_CHOSEN, 2) | {"num_latents": 16}
        if style is not None
        else {}
    )
    found: dict[str, Any] = {}
    for name, value in vars(config).items():
        if isinstance(value, PretrainedConfig):
            if parts := _changes(value, style, image):
                found[name] = {"model_type": value.model_type, **parts} if value.model_type else parts
        elif name in wanted and (type(value) is int or value is None):
            found[name] = wanted[name]
        elif name in most and (type(value) is int or value is None and name in _CHOSEN):
            found[name] = min(value or most[name], most[name])
        elif name == "depth_coefficient" and style is not None:
            found[name] = min(value, 1.0)
        elif name == "default_language" and value is None:
            found[name] = config.languages[0]
        elif name == "image_size" and image is not None and isinstance(value, (list, tuple)):
            found[name] = [image] * len(value)
        elif name == "depths" and isinstance(value, (list, tuple)):
            found[name] = [min(v, LAYERS) for v in value]
        elif style is not None and name.endswith("_token_id") and isinstance(value, int) and value >= WORDS:
            found[name] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}.get(name, 3)
    return found


def _built(config: PretrainedConfig, model_class: type[PreTrainedModel]) -> PreTrainedModel:
    for part in (config, config.get_text_config()):
        if getattr(part, "pad_token_id", None) is None:
            part.pad_token_id = 0
        if config.is_encoder_decoder and getattr(part, "decoder_start_token_id", None) is None:
            part.decoder_start_token_id = part.pad_token_id
    with torch.device("meta"):
        size = sum(p.numel() for p in model_class._from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size:,} parameters, more than {LARGEST:,}")
    return model_class._from_config(config, dtype=torch.float32).eval()


def builds(
    config_class: type[PretrainedConfig], model_class: type[PreTrainedModel]
) -> Iterator[tuple[str, PreTrainedModel]]:
    """(style, model) for every way of making the class small that builds. Raises the last error where none does."""
    default = config_class()
    error: Exception | None = None
    found = False
    images: tuple[int | None, ...] = (None,)
    if any("image_size" in vars(c) for c in (default, *_parts(default))):
        images = (32, 64, None)
    for style in [*style_of(model_class.__name__), "default"]:
        for image in images:
            try:
                changed = _changes(default, STYLES.get(style), image)
                yield (
                    f"{style}, image {image}" if image else style,
                    _built(config_class(**changed), model_class),
                )
                found = True
            except Exception as e:
                error = e
    if not found and error is not None:
        raise error


def _parts(config: PretrainedConfig) -> list[PretrainedConfig]:
    return [v for v in vars(config).values() if isinstance(v, PretrainedConfig)]


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Weights of a size that training reaches: layers that keep the size of what goes through, biases and norms that differ by channel."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: Tensor, std: float, mean: float = 0.0) -> None:
        tensor.data.copy_(torch.randn(tensor.shape, generator=generator) * std + mean)

    for module in model.modules():
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if isinstance(module, nn.Embedding):
            normal(weight, 0.7)
        elif "Norm" in type(module).__name__ and isinstance(weight, Tensor):
            # Some norms multiply by 1 + weight: their weights start at zero.
            normal(weight, 0.2, float(weight.detach().float().mean().round()))
            if isinstance(bias, Tensor):
                normal(bias, 0.2)
            if isinstance(getattr(module, "running_var", None), Tensor):
                normal(module.running_mean, 0.2)
                module.running_var.data.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
        elif isinstance(weight, Tensor) and weight.dim() >= 2 and weight.numel():
            fan_in = weight.numel() // weight.shape[0]
            if "Conv1D" == type(module).__name__:  # GPT-2's linear layer, transposed
                fan_in = weight.shape[0]
            # Convolutions follow each other with nothing but an activation between, which halves what goes through.
            normal(weight, (1.5 if isinstance(module, nn.modules.conv._ConvNd) else 1.0) / fan_in**0.5)
            if isinstance(bias, Tensor):
                normal(bias, 0.2)
    for module in model.modules():
        if hasattr(module, "key_value_proj_dim") and isinstance(module.q, nn.Linear):
            # T5's attention does not scale its scores: its queries are that much smaller, as T5 starts them.
            module.q.weight.data.div_(module.key_value_proj_dim**0.5)
    named = {
        id(p)
        for m in model.modules()
        for n, p in m.named_parameters(recurse=False)
        if n in ("weight", "bias")
    }
    for parameter in model.parameters():  # tables, tokens and scales of modules' own
        if id(parameter) not in named and parameter.is_floating_point() and parameter.numel() > 1:
            own = parameter.detach()
            spread = float(own.std())
            if not spread > 1e-3 * float(own.abs().max()) or parameter.dim() >= 2 and spread < 0.1:
                width = 0.3 if parameter.dim() < 3 else 1.0 / (parameter.shape[-1] ** 0.5)
                parameter.data.add_(torch.randn(parameter.shape, generator=generator) * width)


def settle(model: nn.Module, query: dict[str, Tensor]) -> None:
    """Moves the statistics of batch norms halfway to those of what goes through them, as training leaves them: a model of convolutions and
    sums has nothing else that keeps values from growing layer by layer."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 0.5
    try:
        model(**query)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.eval()
            norm.momentum = momentum


def inputs(model: PreTrainedModel, head: str) -> Iterator[dict[str, Tensor]]:
    """Inputs that the class may take, the likeliest first: rows without padding, padded on the left and on the right."""
    name = model.main_input_name
    if name != "inputs":
        yield from _inputs(model, head, name)
        return
    kind = "pixel_values" if head.startswith("image") else "input_ids"
    for given in _inputs(model, head, kind):
        yield {name if k == kind else k: v for k, v in given.items()}


def _inputs(model: PreTrainedModel, head: str, name: str) -> Iterator[dict[str, Tensor]]:
    config = model.config
    generator = torch.Generator().manual_seed(1)

    def real(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    if name == "input_ids":
        words = min(getattr(config.get_text_config(), "vocab_size", WORDS) or WORDS, WORDS)
        ids = torch.randint(10, words - 9, (ROWS, LENGTH), generator=generator)
        mask = torch.ones_like(ids)
        mask[1, :2] = 0
        mask[2, -3:] = 0
        if config.is_encoder_decoder and head == "sequence":  # these pool at the one end of each row
            end = getattr(config, "eos_token_id", None)
            ids[torch.arange(ROWS), (mask * torch.arange(LENGTH)).argmax(1)] = (
                end if isinstance(end, int) else 2
            )
        pad = getattr(config.get_text_config(), "pad_token_id", 0)
        ids = torch.where(mask == 1, ids, pad if isinstance(pad, int) and 0 <= pad < words else 0)
        given = {"input_ids": ids, "attention_mask": mask}
        if head in ("seq2seq", "embedding") and config.is_encoder_decoder:
            given["decoder_input_ids"] = torch.randint(10, words - 9, (ROWS, LENGTH - 2), generator=generator)
        yield given
        yield {"input_ids": ids, **{k: v for k, v in given.items() if k == "decoder_input_ids"}}
        yield {**given, "bbox": torch.rand(ROWS, LENGTH, 4, generator=generator)}  # places on a page
    elif name == "pixel_values":
        vision = getattr(config, "vision_config", config)
        size = getattr(vision, "image_size", None) or 64
        height, width = size[-2:] if isinstance(size, (list, tuple)) else (size, size)
        channels = getattr(vision, "num_channels", 3) or 3
        yield {"pixel_values": real(2, channels, height, width)}
        yield {"pixel_values": real(2, channels, 64, 64)}
    elif name in ("input_values", "input_features"):
        bins = (
            getattr(config, "num_mel_bins", None)
            or getattr(config, "feature_projection_input_dim", None)
            or 80
        )
        decoder = (
            {"decoder_input_ids": torch.randint(10, WORDS - 9, (2, 5), generator=generator)}
            if config.is_encoder_decoder
            else {}
        )
        if name == "input_values":
            yield {name: real(2, 1000), **decoder}
            yield {name: real(2, getattr(config, "max_length", 64), bins), **decoder}
            yield {name: real(2, 1, 1000), **decoder}
        yield {name: real(2, 40, bins), **decoder}
        yield {name: real(2, bins, 2 * getattr(config, "max_source_positions", 20)), **decoder}
        yield {name: real(2, bins, 40), **decoder}
    else:
        raise ValueError(f"no input is made here for {name!r}")


def outputs(found: Any) -> dict[str, Tensor]:
    """The real tensors of a model's output by name, without caches and the states of layers."""
    if isinstance(found, Tensor):
        return {"output": found}
    named = found.items() if hasattr(found, "items") else enumerate(found)
    return {str(k): v for k, v in named if isinstance(v, Tensor) and v.is_floating_point() and v.numel()}


def classes_of(model_type: str, name: str) -> tuple[type[PretrainedConfig], type[PreTrainedModel]]:
    """The configuration and model class of an entry of a mapping; of the part that the model takes, where it takes one."""
    model_class = getattr(transformers, name)
    return model_class.config_class or transformers.CONFIG_MAPPING[model_type], model_class
