"""How far a secure run may be from the float64 reference: what error bounds of operations are derived from.

With f fraction bits, what an engine may do to a value, and what that moves it by at most:

    encode   2^-(f+1)   a clear real number becomes a ring element (half a unit in the last place)
    cut      2^-f       a truncation to f fraction bits (one unit: it goes to either neighbour); of one factor of a product 2^spread
                        times that, where its node has a spread
    fine     2^-2f      a truncation to 2f fraction bits

An engine truncates where it likes, so each bound counts every truncation that its operands can meet. What is selected, compared or
rearranged is exact on the values that are there. A comparison of values closer than their errors may fall either way: its bit then has
the error 1, and so has all that is selected by it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

FINEST = 2.0**-29
"""A unit in the last place of a reciprocal or an inverse root, which has 30 fraction bits at most."""


@dataclass(frozen=True)
class Approximate:
    """A secret value in float64 and a bound of what the shared one is off by, elementwise; one shape."""

    value: Tensor
    error: Tensor


@dataclass(frozen=True)
class Steps:
    """The errors of one step at f fraction bits; see the module. `spread` is the node's: one factor of a product may lose so many more."""

    fraction_bits: int
    spread: int = 0

    @property
    def encode(self) -> float:
        return 2.0 ** -(self.fraction_bits + 1)

    @property
    def cut(self) -> float:
        return 2.0**-self.fraction_bits

    @property
    def fine(self) -> float:
        return 2.0 ** (-2 * self.fraction_bits)

    def operand(self, x: Any, cut: float = 0.0) -> Approximate:
        """A secret whose consumer may truncate it, with `cut` more error; or a clear real number, which is encoded."""
        if isinstance(x, Approximate):
            return Approximate(x.value, x.error + cut)
        value = torch.as_tensor(x).to(torch.float64)
        whole = isinstance(x, Tensor) and not x.is_floating_point()
        return Approximate(value, torch.full_like(value, 0.0 if whole else self.encode))


def product_error(function: Callable[[Tensor, Tensor], Tensor], x: Approximate, y: Approximate) -> Tensor:
    """Of a bilinear map: |x| e_y + e_x |y| + e_x e_y."""
    return function(x.value.abs(), y.error) + function(x.error, y.value.abs()) + function(x.error, y.error)
