"""Every registered protocol fulfils the contract of secure_eval/protocols/base.py."""

from __future__ import annotations

from secure_eval import protocols
from secure_eval.testing import ProtocolConformance

for _name in protocols.names():
    globals()[f"Test_{_name}"] = type(
        f"Test_{_name}", (ProtocolConformance,), {"protocol": _name, "__module__": __name__}
    )
del _name


def test_built_in_protocols_are_checked() -> None:
    assert {"Test_plain", "Test_dealer2pc"} <= set(globals())
