"""activation "quad_channel": a(x + s)² + b with a, s, b per channel, fitted by least squares to the teacher's
activation.

Under MPC it folds into the linear layers on both sides, W2(a(W1 h + b1 + s)² + b) + b2, and costs one square
an element.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from distill.errors import OutOfRange
from distill.fixed_point import ENGINE, Limits
from distill.variants.registry import register


def fit_quad_channel(
    statistics: Mapping[str, Tensor], arguments: Mapping[str, int | float], limits: Limits = ENGINE
) -> dict[str, Tensor]:
    """Least-squares quadratic per channel from moments of the input x and of the teacher's output y.

    The leading coefficient is clamped to at least `QuadChannelActivation.minimum_scale`, and to what keeps the square
    `limits.margin_bits` below the largest product that fixed point holds; the other two are then refitted.

    Args:
        statistics: "moments" [8, channels] float64: sums of 1, x, x², x³, x⁴, y, xy, x²y; "extent" [2, channels]:
            smallest and largest x.
        arguments: "channels".

    Returns:
        {"scale", "shift", "offset"}, each [channels].

    Raises:
        OutOfRange: the square of a channel's input does not fit, wherever the vertex lies.
    """
    moments = statistics["moments"].double()
    count = moments[0].clamp_min(1.0)
    mean_x, mean_y = moments[1] / count, moments[5] / count
    # Centre x first: the raw moment matrix of a channel with a large mean is badly conditioned.
    m2, m3, m4 = moments[2] / count, moments[3] / count, moments[4] / count
    c2 = (m2 - mean_x**2).clamp_min(1e-12)
    c3 = m3 - 3 * mean_x * m2 + 2 * mean_x**3
    c4 = m4 - 4 * mean_x * m3 + 6 * mean_x**2 * m2 - 3 * mean_x**4
    xy, xxy = moments[6] / count, moments[7] / count
    cov = xy - mean_x * mean_y  # E[u y] - E[u] E[y], u = x - mean
    quad = xxy - 2 * mean_x * xy + mean_x**2 * mean_y - c2 * mean_y  # cov(u², y)
    # Normal equations for y ~ a u² + b u + d after removing d: [var(u²) c3; c3 c2] [a b] = [quad cov].
    spread = (c4 - c2**2).clamp_min(0.0)
    determinant = spread * c2 - c3**2
    solvable = determinant > 1e-9 * (spread * c2 + 1e-30)
    leading = torch.where(solvable, (quad * c2 - cov * c3) / torch.where(solvable, determinant, 1.0), 0.0)
    leading = leading.clamp_min(QuadChannelActivation.minimum_scale)
    # |x + shift| <= |x - mean| + |slope| / 2a has to stay below the root of the largest square.
    most = math.sqrt(limits.product / 2.0**limits.margin_bits)
    reach = (statistics["extent"].double() - mean_x).abs().amax(0)
    if bool((reach >= most).any()):
        channels = (reach >= most).nonzero().flatten().tolist()
        raise OutOfRange(
            f"quad_channel: the inputs of {len(channels)} channel(s), {channels[0]} among them, lie up to "
            f"{float(reach.max()):.4g} from their mean, where a square is held up to {most:.4g}"
        )
    # slope = (cov - a c3) / c2, so |slope| / 2a <= room becomes a (2 room ± c3/c2) >= ± cov/c2.
    room = 2.0 * (most - reach)
    for sign in (1.0, -1.0):
        per_leading = room + sign * c3 / c2
        leading = torch.maximum(leading, torch.where(per_leading > 0, sign * cov / c2 / per_leading, 0.0))
    slope = (cov - leading * c3) / c2
    constant = mean_y - leading * c2
    # a u² + b u + d with u = x - mean becomes a (x + s)² + o.
    shift = slope / (2 * leading) - mean_x
    offset = constant - slope**2 / (4 * leading)
    return {"scale": leading.float(), "shift": shift.float(), "offset": offset.float()}


@register("activation", "quad_channel", size_argument="channels", fit=fit_quad_channel)
class QuadChannelActivation(nn.Module):
    """scale · (x + shift)² + offset, with one trainable triple a channel (the last dimension).

    `minimum_scale` bounds the leading coefficient: a parabola that opens downward or is almost a line has a
    vertex so far out that its square does not fit fixed point. Of the bounds tried, 0.01 keeps the teacher's
    accuracy and 0.06 loses it.
    """

    minimum_scale: float = 0.01

    def __init__(self, channels: int) -> None:
        """Starts at MPCFormer's quadratic in every channel; calibration replaces it."""
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels,), 0.125))
        self.shift = nn.Parameter(torch.ones(channels))
        self.offset = nn.Parameter(torch.full((channels,), 0.375))

    def forward(self, inputs: Tensor) -> Tensor:
        """inputs [..., channels]."""
        shifted = inputs + self.shift
        return self.scale * (shifted * shifted) + self.offset

    def project(self) -> None:
        """Bring the leading coefficient back to its bound after an optimiser step."""
        self.scale.data.clamp_(min=self.minimum_scale)
