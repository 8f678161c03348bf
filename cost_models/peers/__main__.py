"""python -m cost_models.peers: how far the formulas are from published and measured figures."""

from __future__ import annotations

from cost_models.peers.estimate import NOTICE
from cost_models.peers.figure import table
from cost_models.peers.published import deviations

if __name__ == "__main__":
    print(NOTICE)
    print()
    print(table(deviations()))
