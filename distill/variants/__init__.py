"""MPC-friendly replacements, one file each, registered by kind and name. See `distill.variants.registry`."""

from distill.variants import (  # noqa: F401  (imported so that they register)
    activation_exact,
    activation_quad,
    activation_quad_channel,
    activation_relu,
    norm_exact,
    softmax_exact,
    softmax_power,
    softmax_two_quad,
    softmax_two_relu,
)
from distill.variants.registry import Variant, add, get, kinds, names, register

__all__ = ["Variant", "add", "get", "kinds", "names", "register"]
