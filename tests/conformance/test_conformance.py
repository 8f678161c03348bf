"""Every registered protocol fulfils the contract of secure_eval/protocols/base.py, on the CPU and on a GPU."""

from __future__ import annotations

import pytest
import torch

from secure_eval import protocols
from secure_eval.testing import ProtocolConformance
from secure_eval.testing.devices import OneDevice

for _name in protocols.names():
    for _device, _suffix, _marks in (("cpu", "", []), ("cuda", "_cuda", [pytest.mark.needs_gpu])):
        globals()[f"Test_{_name}{_suffix}"] = type(
            f"Test_{_name}{_suffix}",
            (ProtocolConformance,),
            {"protocol": _name, "device": _device, "pytestmark": _marks, "__module__": __name__},
        )
del _name, _device, _suffix, _marks


def test_built_in_protocols_are_checked() -> None:
    assert {"Test_plain", "Test_dealer2pc"} <= set(globals())


def test_leaving_a_device_is_noticed() -> None:
    """On the meta device, which every machine has; the CPU is the place elsewhere."""
    shares, table = torch.empty(3, device="meta"), torch.ones(3)
    with OneDevice("meta"):
        assert (shares * 2.0 + torch.tensor([1.0, 2.0, 3.0], device="meta")).is_meta
        assert float((table * table).sum()) == 3
    for leaves in (
        lambda: table.copy_(shares),
        lambda: shares.sum().item(),
        lambda: torch.equal(shares, shares),
        lambda: torch.zeros_like(shares, device="cpu"),
        lambda: torch.index_select(shares, 0, torch.tensor([0, 2])),
    ):
        with OneDevice("meta"), pytest.raises((AssertionError, NotImplementedError)) as caught:
            leaves()
        assert caught.type is AssertionError, caught.value
