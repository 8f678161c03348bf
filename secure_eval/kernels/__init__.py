"""Local steps on shares: pure torch functions that define them, and what runs them faster on one kind of device.

`kernel.py` marks a function as a step and says how it runs; `compare_radix16.py`, `compare_radix256.py` and `masked_opening.py` hold the
definitions; `compiled/` the loops for the CPU, each registered under its step's name.
"""

from secure_eval.kernels.kernel import Loops, provide


def _cpu() -> Loops:
    """The compiler is imported with the first step that runs on a CPU, not before."""
    from secure_eval.kernels.compiled import LOOPS

    return LOOPS


provide("cpu", _cpu)
