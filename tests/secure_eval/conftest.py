"""Shared by the tests of the engine."""

from __future__ import annotations

import pytest

from secure_eval import protocols
from secure_eval.protocols.base import Protocol


@pytest.fixture(params=["plain", "dealer2pc"])
def protocol(request: pytest.FixtureRequest) -> type[Protocol]:
    """Each built-in protocol in turn."""
    return protocols.get(request.param)
