"""How far a secure run may be from the float64 reference: an error bound for every value of a program, derived rule by rule.

With f fraction bits, what an engine may do to a value, and what that moves it by at most:

    encode   2^-(f+1)   a clear real number becomes a ring element (half a unit in the last place)
    cut      2^-f       a truncation to f fraction bits (one unit: it goes to either neighbour); of one factor of a product 2^spread
                        times that, where its node has a spread
    fine     2^-2f      a truncation to 2f fraction bits

An engine truncates where it likes, so each rule counts every truncation that its operands can meet. What is selected, compared or
rearranged is exact on the values that are there. A comparison of values closer than their errors may fall either way: its bit then has
the error 1, and so has all that is selected by it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import frexp
from typing import Any

import torch
from torch import Tensor

from secure_eval.magnitudes import VALUE_BITS
from secure_eval.program import Node
from secure_eval.reference import MEANINGS

RELATIVE = 2.0**-22
"""Of float32: inputs are given and outputs returned in it."""


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


FINEST = 2.0**-29
"""A unit in the last place of a reciprocal or an inverse root, which has 30 fraction bits at most."""

Rule = Callable[..., Tensor]
BOUNDS: dict[str, Rule] = {}
"""Operation -> error of the result, from the steps, the result in float64 and the arguments: Approximate where they are secret."""


def bound(*operations: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        BOUNDS.update(dict.fromkeys(operations, rule))
        return rule

    return register


def error(node: Node, steps: Steps, value: Tensor, args: list[Any]) -> Tensor:
    """The bound of a node's error, of the shape of its value."""
    result = BOUNDS[node.op](replace(steps, spread=node.spread), value, *args)
    return torch.broadcast_to(result, value.shape)


def product(function: Callable[[Tensor, Tensor], Tensor], x: Approximate, y: Approximate) -> Tensor:
    """Of a bilinear map: |x| e_y + e_x |y| + e_x e_y."""
    return function(x.value.abs(), y.error) + function(x.error, y.value.abs()) + function(x.error, y.error)


@bound("share_input", "share_weight")
def _shared(steps: Steps, value: Tensor, x: Any) -> Tensor:
    return steps.operand(x).error


@bound("view")
def _view(steps: Steps, value: Tensor, target: str, x: Approximate, *rest: Any) -> Tensor:
    """Errors are rearranged, and added where values are. What is added up is truncated before where the sum has less room."""
    if target.split(".")[1] in ("sum", "cumsum"):
        return MEANINGS["view"](target, torch.where(x.error > 0, x.error + steps.cut, 0.0), *rest)
    return MEANINGS["view"](target, x.error, *rest)


@bound("cat")
def _cat(steps: Steps, value: Tensor, target: str, parts: list[Any], dim: int) -> Tensor:
    """Parts with different fraction bits are truncated to f."""
    return MEANINGS["cat"](target, [steps.operand(v, steps.cut).error for v in parts], dim)


@bound("take")
def _take(steps: Steps, value: Tensor, table: Approximate, index: Tensor) -> Tensor:
    return table.error[index]


@bound("neg", "relu", "clamp")
def _exact(steps: Steps, value: Tensor, x: Approximate, *bounds: float) -> Tensor:
    """Slopes of 1 at most; bounds are encoded."""
    return x.error + (steps.encode if bounds else 0.0)


@bound("add", "sub")
def _sum(steps: Steps, value: Tensor, x: Any, y: Any) -> Tensor:
    """Operands with different fraction bits keep 2f at most."""
    return steps.operand(x, steps.fine).error + steps.operand(y, steps.fine).error


@bound("mul")
def _mul(steps: Steps, value: Tensor, x: Any, y: Any) -> Tensor:
    if isinstance(x, Approximate) and isinstance(y, Approximate):
        cuts = [steps.cut * 2.0 ** max(0, more) for more in (steps.spread, -steps.spread)]
        return product(torch.mul, steps.operand(x, cuts[0]), steps.operand(y, cuts[1]))
    secret, clear = (x, y) if isinstance(x, Approximate) else (y, x)
    if isinstance(clear, Tensor):
        # A public factor takes f fraction bits at least; whole numbers are never truncated.
        cut = torch.where(secret.error > 0, steps.cut, 0.0) if not clear.is_floating_point() else steps.cut
        return product(torch.mul, Approximate(secret.value, secret.error + cut), steps.operand(clear))
    factor = torch.tensor(float(clear), dtype=torch.float64)
    exact = frexp(abs(clear))[0] == 0.5 or (clear == int(clear) and abs(clear) < 2**10)
    if exact:  # the binary point moves, to more fraction bits than stay perhaps, or an integer multiplies
        before = torch.where(secret.error > 0, secret.error + steps.cut, 0.0)
        return before * factor.abs() + (steps.cut if abs(clear) < 1 else 0.0)
    # Public factors keep nine significant bits, or the fraction bits that the secret leaves of the ring's 62.
    least = torch.tensor(2.0 ** (steps.fraction_bits - VALUE_BITS))
    off = Approximate(factor, torch.maximum(factor.abs() * 2.0**-10, least))
    return product(torch.mul, steps.operand(secret, steps.cut), off)


@bound("square")
def _square(steps: Steps, value: Tensor, x: Approximate) -> Tensor:
    off = steps.operand(x, steps.cut)
    return 2 * off.value.abs() * off.error + off.error**2


@bound("power")
def _power(steps: Steps, value: Tensor, x: Approximate, n: int) -> Tensor:
    while n > 1:
        x = Approximate(x.value**2, _square(steps, value, x))
        n //= 2
    return x.error


@bound("matmul")
def _matmul(steps: Steps, value: Tensor, x: Any, y: Any) -> Tensor:
    return product(torch.matmul, steps.operand(x, steps.cut), steps.operand(y, steps.cut))


@bound("linear")
def _linear(steps: Steps, value: Tensor, x: Approximate, weight: Any, bias: Any) -> Tensor:
    off = product(lambda a, b: a @ b.mT, steps.operand(x, steps.cut), steps.operand(weight, steps.cut))
    return off if bias is None else off + steps.operand(bias, steps.fine).error


SMOOTH: dict[str, tuple[float, float]] = {
    "gelu": (1.13, 2.0**-10),
    "tanh": (1.0, 2.0**-10),
    "sigmoid": (0.25, 2.0**-11),
    "silu": (1.1, 2.0**-10),
    "erf": (1.13, 2.0**-10),
    "softplus": (1.0, 2.0**-10),
    "mish": (1.09, 2.0**-10),
}
"""Functions of one number: largest slope, and absolute error as their docstrings state it."""


def _smooth(slope: float, stated: float) -> Rule:
    return lambda steps, value, x, *rest: slope * (x.error + steps.cut) + stated


BOUNDS.update({name: _smooth(*constants) for name, constants in SMOOTH.items()})


@bound("elu")
def _elu(steps: Steps, value: Tensor, x: Approximate, alpha: float) -> Tensor:
    size = max(1.0, abs(alpha))
    return size * (x.error + steps.cut) + size * 2.0**-10


def _normalised(power: float, stated: float) -> Rule:
    """x^power for x > 0: the reference at both ends of what x may be, and the stated relative error of what comes out."""

    def rule(steps: Steps, value: Tensor, x: Approximate, low: float, high: float) -> Tensor:
        off = x.error + steps.cut
        worst = (x.value - off).clamp(min=low / 2) ** power
        return (worst - value) + stated * worst + FINEST

    return rule


BOUNDS["reciprocal"] = _normalised(-1.0, 2.0**-10)
BOUNDS["rsqrt"] = _normalised(-0.5, 2.0**-10)


BOUNDS["signed_reciprocal"] = lambda steps, value, x, low, high: _normalised(-1.0, 2.0**-10)(
    steps, value.abs(), Approximate(x.value.abs(), x.error), low, high
)


@bound("sqrt")
def _sqrt(steps: Steps, value: Tensor, x: Approximate, low: float, high: float) -> Tensor:
    """The reference at both ends of what x may be; a relative error from low on, an absolute one below."""
    off = x.error + steps.cut
    apart = value - (x.value - off).clamp(min=0.0).sqrt()
    return apart + 2.0**-11 * (value + apart) + torch.where(x.value - off < low, low**0.5 / 2, 0.0)


@bound("log")
def _log(steps: Steps, value: Tensor, x: Approximate, low: float, high: float) -> Tensor:
    return value - (x.value - x.error - steps.cut).clamp(min=low / 2).log() + 2.0**-10


@bound("exp")
def _exp(steps: Steps, value: Tensor, x: Approximate, low: float, high: float) -> Tensor:
    """A relative error, none of the value below low, and a truncation."""
    off = x.error + steps.cut
    result = value * torch.expm1(off) + 2.0**-10 * value * torch.exp(off) + steps.cut
    return result + torch.where(x.value - off < low, value, 0.0)


@bound("conv")
def _conv(steps: Steps, value: Tensor, x: Any, weight: Any, bias: Any, windows: Any) -> Tensor:
    def function(a: Tensor, b: Tensor) -> Tensor:
        return MEANINGS["conv"](a, b, None, windows)

    off = product(function, steps.operand(x, steps.cut), steps.operand(weight, steps.cut))
    return off if bias is None else off + steps.operand(bias, steps.fine).error


@bound("one_hot")
def _one_hot(steps: Steps, value: Tensor, x: Approximate, n: int) -> Tensor:
    """Exact for a whole number that is less than a half off."""
    return (x.error + steps.cut >= 0.5).to(torch.float64).unsqueeze(-1)


@bound("softmax_numerator")
def _numerator(steps: Steps, value: Tensor, x: Approximate, mask: Tensor | None, dim: int) -> Tensor:
    """exp(x - max): both are off, then a relative 8e-4, zero below -12 (under 2^-17), and a truncation. Masked entries are zero exactly."""
    off = x.error + steps.fine + steps.encode
    off = off + off.amax(dim, keepdim=True)
    result = value * torch.expm1(off) + 8e-4 * value * torch.exp(off) + 2.0**-17 + steps.cut
    if mask is None:
        return result
    keep = torch.broadcast_to(mask if mask.dtype == torch.bool else mask != -torch.inf, value.shape)
    return torch.where(keep | ~keep.any(dim, keepdim=True), result, 0.0)


@bound("layer_norm")
def _layer_norm(
    steps: Steps,
    value: Tensor,
    x: Approximate,
    dims: int,
    weight: Any,
    bias: Any,
    eps: float,
    *between: float,
) -> Tensor:
    """Deviations from the mean are off by d; so is, at most, their root mean square. What comes out has a relative error below 2^-10."""
    axes = tuple(range(-dims, 0))
    d = (2 * (x.error + steps.fine) + steps.cut).amax(axes, keepdim=True)
    deviation = x.value - x.value.mean(axes, keepdim=True)
    sigma = ((deviation**2).mean(axes, keepdim=True) + eps).sqrt()
    z = deviation / sigma
    smaller = torch.maximum(sigma - d, sigma / 2)
    off = (1 + z.abs()) * d / smaller + 2.0**-10 * z.abs().amax(axes, keepdim=True)
    if weight is not None:
        w = steps.operand(weight, steps.cut)
        off = product(torch.mul, Approximate(z, off), w) + steps.cut / smaller
    return off if bias is None else off + steps.operand(bias, steps.fine).error


@bound("rms_norm")
def _rms_norm(
    steps: Steps, value: Tensor, x: Approximate, dims: int, weight: Any, eps: float, *between: float
) -> Tensor:
    """As layer_norm, without the mean."""
    axes = tuple(range(-dims, 0))
    d = (x.error + steps.fine + steps.cut).amax(axes, keepdim=True)
    sigma = ((x.value**2).mean(axes, keepdim=True) + eps).sqrt()
    z = x.value / sigma
    smaller = torch.maximum(sigma - d, sigma / 2)
    off = (1 + z.abs()) * d / smaller + 2.0**-10 * z.abs().amax(axes, keepdim=True)
    if weight is None:
        return off
    return product(torch.mul, Approximate(z, off), steps.operand(weight, steps.cut)) + steps.cut / smaller


@bound("amax")
def _amax(steps: Steps, value: Tensor, x: Approximate, dim: int, keepdim: bool) -> Tensor:
    return x.error.amax(dim, keepdim=keepdim)


@bound("max_with_index")
def _max_with_index(steps: Steps, value: Tensor, x: Approximate, dim: int, keepdim: bool) -> Tensor:
    """The place is open where another value is nearer than the errors of the two; of equal values without error the first counts."""
    top = x.value.argmax(dim, keepdim=True)
    off = x.error + torch.where(x.error > 0, steps.fine, 0.0)
    apart, both = x.value.gather(dim, top) - x.value, off.gather(dim, top) + off
    place = torch.arange(x.value.shape[dim]).view(-1, *[1] * (x.value.dim() - 1)).movedim(0, dim)
    near = ((apart <= both) & (both > 0) & (place != top)).any(dim, keepdim=True)
    index = near * float(x.value.shape[dim])
    largest = (x.error + steps.fine).amax(dim, keepdim=True)
    return torch.stack([v if keepdim else v.squeeze(dim) for v in (largest, index)])


@bound("less", "equal")
def _compared(steps: Steps, value: Tensor, x: Any, y: Any) -> Tensor:
    """Open where the values are nearer than their errors. Values without any are whole numbers, and never truncated."""
    a, b = steps.operand(x), steps.operand(y)
    off = a.error + b.error
    return (((a.value - b.value).abs() <= off + 2 * steps.fine) & (off > 0)).to(torch.float64)


@bound("where")
def _where(steps: Steps, value: Tensor, c: Any, x: Any, y: Any) -> Tensor:
    """y + c (x - y): the chosen one's error and the truncations of both; where the bit is open, the distance to the other as well."""
    a, b = steps.operand(x, 2 * steps.fine), steps.operand(y, 2 * steps.fine)
    # Of two public numbers the difference is a public factor of the bit, and has 16 significant bits.
    apart = (a.value - b.value).abs()
    clear = sum(not isinstance(v, Approximate) for v in (x, y))
    encoded = torch.tensor(2 * steps.encode if clear else 0.0) + (apart * 2.0**-16 if clear == 2 else 0.0)
    if not isinstance(c, Approximate):
        return torch.where(c != 0, a.error, b.error) + encoded + 4 * steps.fine
    chosen = torch.where(c.value != 0, a.error, b.error) + 4 * steps.fine + encoded
    either = apart + torch.maximum(a.error, b.error) + 4 * steps.fine + encoded
    return torch.where(c.error > 0, either, chosen)
