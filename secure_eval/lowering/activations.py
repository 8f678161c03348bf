"""Activations and normalisations that stay one operation."""

from __future__ import annotations

from typing import Any

from secure_eval.lowering.builder import Builder
from secure_eval.lowering.registry import rule


@rule("relu.default", "relu_.default")
def _relu(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return b.op("relu", args[:1], value)


@rule("clamp.default", "clamp_min.default")
def _clamp(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    low = kwargs.get("min", args[1] if len(args) > 1 else None)
    high = kwargs.get("max", args[2] if len(args) > 2 else None)
    return _bounded(b, args[0], low, high, value)


@rule("clamp_max.default")
def _clamp_max(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return _bounded(b, args[0], None, args[1], value)


def _bounded(b: Builder, x: Any, low: Any, high: Any, value: Any) -> Any:
    """min(max(x, low), high): low + relu(x - low), and the same from above."""
    if low is not None:
        x = b.op("relu", [x if low == 0 else b.op("sub", [x, low], value)], value)
        x = x if low == 0 else b.op("add", [x, low], value)
    if high is not None:
        x = b.op("sub", [high, b.op("relu", [b.op("sub", [high, x], value)], value)], value)
    return x


@rule("gelu.default")
def _gelu(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return b.op("gelu", [args[0], kwargs.get("approximate", args[1] if len(args) > 1 else "none")], value)


@rule("tanh.default")
def _tanh(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return b.op("tanh", args[:1], value)


@rule("layer_norm.default")
def _layer_norm(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    x, shape, weight, bias, eps = (*args, None, None, 1e-5)[:5] if len(args) < 5 else args[:5]
    return b.op("layer_norm", [b.secret(x), len(shape), weight, bias, float(eps)], value)
