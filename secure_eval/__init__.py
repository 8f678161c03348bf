"""Secure evaluation: what a secure computation is, from a torch module to parties that run it on shares.

program = capture(model, example_inputs)      the model as a closed set of secure operations
secure = compile(model, example_inputs)       parties started, weights shared
out = secure(**inputs)                        same type as model(**inputs), revealed to the caller only
secure.measurement                            bytes, rounds and seconds of .setup, .offline, .online
"""

from secure_eval import protocols, ranges
from secure_eval.capture import UnsupportedOperations, capture
from secure_eval.counting import count
from secure_eval.measurement import Counts, Measurement
from secure_eval.model import InputError, SecureModel, compile, run
from secure_eval.network.emulation import Link
from secure_eval.program import Program
from secure_eval.ranges import RangeError

__all__ = [
    "Counts",
    "InputError",
    "Link",
    "Measurement",
    "Program",
    "RangeError",
    "SecureModel",
    "UnsupportedOperations",
    "capture",
    "compile",
    "count",
    "protocols",
    "ranges",
    "run",
]
