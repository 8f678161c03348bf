"""What the compiled loops share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from torch import Tensor

BLOCK = 1024
U8, U16, U64 = np.uint8, np.uint16, np.uint64
Array = np.ndarray[Any, Any]
LOOPS: dict[str, Callable[..., Any]] = {}
"""The loops by the name of the torch function that they stand for; same arguments, same results."""

compiled = njit(cache=True, nogil=True)


def loop(function: Callable[..., Any]) -> Callable[..., Any]:
    """Registers a loop for the torch function of its name."""
    LOOPS[function.__name__] = function
    return function


def flat(x: Tensor, dtype: Any) -> Array:
    """The elements in order as a numpy array of an equally wide dtype."""
    return x.contiguous().view(-1).numpy().view(dtype)


def unsigned(values: Any) -> Array:
    """Python integers modulo 2^64."""
    return np.array([v & (2**64 - 1) for v in values], dtype=np.uint64)
