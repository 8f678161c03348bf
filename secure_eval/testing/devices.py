"""A mode that refuses what leaves a device: moving a tensor elsewhere, mixing devices, or reading a value."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from secure_eval.kernels.meta_tensors import tensors_in

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
        inward = name in _TO_DEVICE and not self._here(taken[-1:])
        self._together(func, [] if inward else taken)
        result = func(*args, **kwargs)
        self._together(func, [] if inward else [*taken, *tensors_in(result)])
        return result

    def _together(self, func: Any, tensors: list[Tensor]) -> None:
        if self._here(tensors) and self._elsewhere(tensors):
            places = [f"{tuple(x.shape)} on {x.device}" for x in tensors]
            raise AssertionError(f"{func} with {', '.join(places)}: not all on {self.device}")

    def _here(self, tensors: list[Tensor]) -> bool:
        return any(x.device.type == self.device for x in tensors)

    def _elsewhere(self, tensors: list[Tensor]) -> bool:
        return any(x.device.type != self.device and (x.dim() > 0 or x.device.type != "cpu") for x in tensors)
