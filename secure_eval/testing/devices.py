"""A mode that refuses what leaves a device: moving a tensor elsewhere, mixing devices, or reading a value."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from secure_eval.kernels import tensors_in

_READS = ("_local_scalar_dense", "equal", "is_nonzero")
_TO_DEVICE = ("_to_copy", "copy_")
"""How torch.tensor(numbers, device=...) gets public numbers to the device: allowed in that direction."""


class OneDevice(TorchDispatchMode):
    """Inside, no torch operation takes or gives tensors of this device type and of another; AssertionError names the one that does.

    Operations on the CPU alone are none of its business: public tables are fitted there, once. Their numbers may go to the device, and
    tensors without dimensions stand for numbers.
    """

    def __init__(self, device: torch.device | str):
        super().__init__()
        self.device = torch.device(device).type

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        taken = list(tensors_in([*args, *kwargs.values()]))
        if name in _READS and self._here(taken):
            raise AssertionError(f"{func} reads a value")
        result = func(*args, **kwargs)
        given = list(tensors_in(result))
        inward = name in _TO_DEVICE and self._here(given) and not self._here(taken[-1:])
        if self._here(taken + given) and self._elsewhere(taken + given) and not inward:
            places = [f"{tuple(x.shape)} on {x.device}" for x in taken + given]
            raise AssertionError(f"{func} with {', '.join(places)}: not all on {self.device}")
        return result

    def _here(self, tensors: list[Tensor]) -> bool:
        return any(x.device.type == self.device for x in tensors)

    def _elsewhere(self, tensors: list[Tensor]) -> bool:
        return any(x.device.type != self.device and (x.dim() > 0 or x.device.type != "cpu") for x in tensors)
