"""tanh from exp and a reciprocal on [1, 2]."""

from __future__ import annotations

from secure_eval.functions.exponential import exp_nonpositive
from secure_eval.functions.normalised import reciprocal
from secure_eval.protocols.base import MUL, Protocol, Secret


async def absolute(p: Protocol, x: Secret) -> tuple[Secret, Secret]:
    """abs(x), and the sign as a ring element: 1 where x >= 0, -1 where x < 0."""
    negative = (await p.less_than(x, [0.0]))[0]
    part, bit = await p.select_with_bits(negative, x)
    return p.sub(x, p.scale(part, 2)), p.add_public(p.scale(bit, -2), 1)


async def tanh(p: Protocol, x: Secret) -> Secret:
    """tanh(x) = sign(x) (2 / (1 + exp(-2 abs(x))) - 1), any shape. Absolute error below 2^-10 for abs(x) < 2^14."""
    magnitude, sign = await absolute(p, x)
    e = await p.rescale(await exp_nonpositive(p, p.scale(magnitude, -2)), 24)
    inverse = await reciprocal(p, p.add_real(e, 1.0), 1.0, 2.0)
    return await p.bilinear(MUL, p.add_real(p.scale(inverse, 2), -1.0), sign)
