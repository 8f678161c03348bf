"""What is dealt for readings of a masked opening."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from secure_eval import ring
from secure_eval.correlations.correlation import Correlation, Field
from secure_eval.kernels import compare_radix16, compare_radix256
from secure_eval.kernels.masked_opening import bits_as_ring, mask_powers
from secure_eval.network.transport import TensorSpec
from secure_eval.protocols.base import Bilinear


@dataclass(frozen=True)
class Mask(Correlation):
    """A mask r of one opening, with what its readings need.

    With T = r >> shift and m the top bit of r: the powers T^j, and what to subtract from them when x + r
    wrapped, which is m * (T^j - (T - 2^(64-shift))^j), a multiple of 2^(64-shift) (j up to degree). The
    indicator vectors of r's 4-bit groups when it serves comparisons, of its bytes where they are to take one level of gates.
    """

    shape: tuple[int, ...]
    shift: int = 0
    degree: int = 1
    compare: bool = False
    one_level: bool = False

    def random(self) -> Sequence[Field]:
        return (Field("r", TensorSpec(self.shape)),)

    def derived(self) -> Sequence[Field]:
        fields = []
        for j in range(1, self.degree + 1):
            if j > 1 or self.shift:
                fields.append(Field(f"power{j}", TensorSpec(self.shape)))
            if self.shift:
                fields.append(Field(f"wrap{j}", TensorSpec(self.shape, ring.smallest_dtype(self.shift))))
        if self.compare and self.one_level:
            spec = TensorSpec((compare_radix256.GROUPS, *self.shape, 32), torch.uint8)
            fields.append(Field("groups", spec, xor=True))
        elif self.compare:
            fields.append(
                Field("groups", TensorSpec((compare_radix16.GROUPS, *self.shape), torch.int16), xor=True)
            )
        return fields

    def derive(
        self, own: Mapping[str, Tensor], others: Callable[[object], Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        r = own["r"]
        names = [f.name for f in self.derived() if not f.xor]
        values = _powers(r, names, self.shift, self.degree)
        if self.compare:
            values["groups"] = (
                compare_radix256.byte_indicators(r) if self.one_level else compare_radix16.indicators(r)
            )
        return values


def _powers(r: Tensor, names: Sequence[str], shift: int, degree: int) -> dict[str, Tensor]:
    """mask_powers by name; nothing is computed where there are none."""
    return dict(zip(names, mask_powers(r, shift=shift, degree=degree), strict=True)) if names else {}


@dataclass(frozen=True)
class MaskPowers(Correlation):
    """More readings of a value that is open under the mask `x`: what a Mask of another shift or degree deals, of the same r."""

    shape: tuple[int, ...]
    shift: int
    degree: int
    x: int | str

    def derived(self) -> Sequence[Field]:
        return Mask(self.shape, self.shift, self.degree).derived()

    def derive(
        self, own: Mapping[str, Tensor], others: Callable[[object], Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        return _powers(others(self.x)["r"], [f.name for f in self.derived()], self.shift, self.degree)

    def references(self) -> Sequence[object]:
        return (self.x,)


@dataclass(frozen=True)
class Truncation(Correlation):
    """A private mask bit of each party an element, and the product of the two modulo 2^shift."""

    shape: tuple[int, ...]
    shift: int

    def random(self) -> Sequence[Field]:
        return (Field("mask", TensorSpec((-(-prod(self.shape) // 8),), torch.uint8), private=True),)

    def derived(self) -> Sequence[Field]:
        return (Field("product", TensorSpec(self.shape, ring.smallest_dtype(self.shift))),)

    def derive(
        self, own: Mapping[str, Tensor], others: Callable[[object], Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        m = own["mask"]
        both = compare_radix16.unpack_bits(m[0] & m[1], prod(self.shape)).view(self.shape)
        return {"product": both.to(ring.smallest_dtype(self.shift))}


@dataclass(frozen=True)
class Product(Correlation):
    """op(r_x, r_y) of two masks; a mask is named by its number in the plan, or by the weight that it masks
    for good."""

    op: Bilinear
    x: int | str
    y: int | str
    x_shape: tuple[int, ...]
    y_shape: tuple[int, ...]

    def random(self) -> Sequence[Field]:
        return ()

    def derived(self) -> Sequence[Field]:
        return (Field("product", TensorSpec(self.op.shape(self.x_shape, self.y_shape))),)

    def derive(
        self, own: Mapping[str, Tensor], others: Callable[[object], Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        return {"product": self.op(others(self.x)["r"], others(self.y)["r"])}

    def references(self) -> Sequence[object]:
        return (self.x, self.y)


@dataclass(frozen=True)
class PolynomialProduct(Correlation):
    """What a Mask deals of its powers and wraps, each multiplied by the mask of a factor that broadcasts to its shape."""

    shape: tuple[int, ...]
    shift: int
    degree: int
    x: int | str
    factor: int | str

    def derived(self) -> Sequence[Field]:
        powers = [Field(f"power{j}", TensorSpec(self.shape)) for j in range(1, self.degree + 1)]
        if not self.shift:
            return powers
        small = TensorSpec(self.shape, ring.smallest_dtype(self.shift))
        return powers + [Field(f"wrap{j}", small) for j in range(1, self.degree + 1)]

    def derive(
        self, own: Mapping[str, Tensor], others: Callable[[object], Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        r, u = others(self.x)["r"], others(self.factor)["r"]
        readings = list(mask_powers(r, shift=self.shift, degree=self.degree))
        if not self.shift:
            return {f"power{j}": v * u for j, v in enumerate([r, *readings], 1)}
        powers, wraps = readings[::2], readings[1::2]
        values = {f"power{j}": v * u for j, v in enumerate(powers, 1)}
        return values | {f"wrap{j}": w * u.to(w.dtype) for j, w in enumerate(wraps, 1)}

    def references(self) -> Sequence[object]:
        return (self.x, self.factor)


@dataclass(frozen=True)
class And4(Correlation):
    """Masks of one level of four-input carry nodes, and all products of them that the carry formula
    contains."""

    words: int
    need_p: bool

    def random(self) -> Sequence[Field]:
        return (
            Field(
                "masks", TensorSpec((compare_radix16.inputs(self.need_p), self.words), torch.uint8), xor=True
            ),
        )

    def derived(self) -> Sequence[Field]:
        return (
            Field(
                "products",
                TensorSpec((len(compare_radix16.monomials(self.need_p)), self.words), torch.uint8),
                xor=True,
            ),
        )

    def derive(
        self, own: Mapping[str, Tensor], others: Callable[[object], Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        return {"products": compare_radix16.mask_products(own["masks"], need_p=self.need_p)}


@dataclass(frozen=True)
class And14(Correlation):
    """Masks of the inputs of one-level comparisons, and all products of them that the borrow contains."""

    words: int

    def random(self) -> Sequence[Field]:
        return (Field("masks", TensorSpec((compare_radix256.INPUTS, self.words), torch.uint8), xor=True),)

    def derived(self) -> Sequence[Field]:
        spec = TensorSpec((len(compare_radix256.monomials()), self.words), torch.uint8)
        return (Field("products", spec, xor=True),)

    def derive(
        self, own: Mapping[str, Tensor], others: Callable[[object], Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        return {"products": compare_radix256.byte_mask_products(own["masks"])}


@dataclass(frozen=True)
class BothMask(Correlation):
    """Masks of secret bits and of the bits that gate them, as XOR shares and as ring shares, and their products in the ring.

    The gates have the bits' shape but for the first dimension.
    """

    shape: tuple[int, ...]

    def random(self) -> Sequence[Field]:
        sizes = {"packed": prod(self.shape), "gate_packed": prod(self.shape[1:])}
        return [
            Field(name, TensorSpec((-(-size // 8),), torch.uint8), xor=True) for name, size in sizes.items()
        ]

    def derived(self) -> Sequence[Field]:
        shapes = {"ring": self.shape, "gate": self.shape[1:], "product": self.shape}
        return [Field(name, TensorSpec(shape)) for name, shape in shapes.items()]

    def derive(
        self, own: Mapping[str, Tensor], others: Callable[[object], Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        bits = bits_as_ring(own["packed"], shape=self.shape)
        gate = bits_as_ring(own["gate_packed"], shape=self.shape[1:])
        return {"ring": bits, "gate": gate, "product": bits * gate}


@dataclass(frozen=True)
class BitMask(Correlation):
    """Masks of secret bits, as XOR shares and as ring shares, and their products with the mask of an opened
    value.

    `value` names the mask of that value (None: conversion only). Bits and value broadcast against each other.
    """

    shape: tuple[int, ...]
    value: int | str | None = None
    value_shape: tuple[int, ...] = ()

    def random(self) -> Sequence[Field]:
        return (Field("packed", TensorSpec((-(-prod(self.shape) // 8),), torch.uint8), xor=True),)

    def derived(self) -> Sequence[Field]:
        fields = [Field("ring", TensorSpec(self.shape))]
        if self.value is not None:
            fields.append(
                Field("product", TensorSpec(tuple(torch.broadcast_shapes(self.shape, self.value_shape))))
            )
        return fields

    def derive(
        self, own: Mapping[str, Tensor], others: Callable[[object], Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        bits = bits_as_ring(own["packed"], shape=self.shape)
        values = {"ring": bits}
        if self.value is not None:
            values["product"] = bits * others(self.value)["r"]
        return values

    def references(self) -> Sequence[object]:
        return () if self.value is None else (self.value,)
