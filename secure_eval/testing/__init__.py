"""What tests of protocols need: a harness that runs protocol code in all parties, statistics, and the
conformance suite.

    class TestMine(ProtocolConformance):      in a test file of the protocol's own project
        protocol = "mine"

runs the whole suite for a protocol registered under the entry point group `sordino.protocols`. Nothing here
imports pytest.
"""

from secure_eval.testing.conformance import ProtocolConformance
from secure_eval.testing.harness import Evaluation, evaluate, observe
from secure_eval.testing.knowledge import Traffic

__all__ = ["Evaluation", "ProtocolConformance", "Traffic", "evaluate", "observe"]
