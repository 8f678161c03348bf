"""What values a program's operations are right for, and what values they meet: fixed point checked before anything is sent.

observed = calibrate(program, batches)               largest magnitudes and arguments, node by node, from the float64 reference
report = check(program, observed, fraction_bits=16)  what does not fit, and the truncations of a query; print(report)
choose_fraction_bits(program, observed)              the most fraction bits that fit
certify(program, batches)                            the program with bounds and ranges from calibration, and its certificate
narrow_ranges(program, observed)                     reciprocals and inverse roots for the arguments that they meet: cheaper
"""

from secure_eval.ranges.calibration import Extent, Observed, Ranges, calibrate
from secure_eval.ranges.certificate import Certificate, Entry, certify
from secure_eval.ranges.checking import RangeError, Report, Violation, check, choose_fraction_bits
from secure_eval.ranges.guard import is_guarded, with_guard
from secure_eval.ranges.narrowing import narrow_ranges

__all__ = [
    "Certificate",
    "Entry",
    "Extent",
    "Observed",
    "RangeError",
    "Ranges",
    "Report",
    "Violation",
    "calibrate",
    "certify",
    "check",
    "choose_fraction_bits",
    "is_guarded",
    "narrow_ranges",
    "with_guard",
]
