"""The closed set of secure operations: one row each, in the file of its subject.

`OPERATIONS` is what all others read: the check of programs (spec.py), their meaning (reference.py), intervals and bounds of values
(intervals.py, magnitudes.py), ranges (ranges/), error bounds of tests, and the engine, which runs them.
"""

from secure_eval.operations import arithmetic, arrangement, comparisons, curves, powers, rows
from secure_eval.operations.operation import Operation, ValidRange

OPERATIONS: dict[str, Operation] = {
    **arrangement.OPERATIONS,
    **arithmetic.OPERATIONS,
    **curves.OPERATIONS,
    **powers.OPERATIONS,
    **rows.OPERATIONS,
    **comparisons.OPERATIONS,
}

__all__ = ["OPERATIONS", "Operation", "ValidRange"]
