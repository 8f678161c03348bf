"""Compiled loops for the CPU: each does in one pass over cache-sized blocks what the torch function of the
same name defines.

numba compiles a loop when it is first called (a second or more each) and keeps the machine code beside this
file or in the user's cache, so later processes only load it. The loops release the GIL. Inner loops run over
slices, unit stride and without index arithmetic on signed numbers, which is what lets the compiler use the
widest vector registers; ring elements are uint64 here, so that shifts are logical.
benchmarks/local_kernels.py says what each loop gains over its torch function; steps that gained nothing are
not here.
"""

from secure_eval.kernels.compiled import (  # noqa: F401 (they register loops)
    compare_radix16,
    compare_radix256,
    masks,
    selection,
    truncation,
)
from secure_eval.kernels.compiled.loops import LOOPS

__all__ = ["LOOPS"]
