"""Steps of function secret sharing as SIGMA's public release writes them: their keys and openings (mpc-msri/EzPC, GPU-MPC, fss/*.cu).

n bits is the ring, s the shift:

* DCF/DPF key on b bits: b <= 7 a table of 2^(b-3) bytes; else b - 7 blocks of 16 bytes, 2 leaf blocks, b - 7 bits of advice (a
  look-up's DPF, which is evaluated everywhere: 4 bytes). LRS/ARS ("TrFloor"): DCFs on s and n - s bits; opens 1 + (n - s) and 1 +
  n bits, 4 rounds. Truncation with slack: DCF on s bits; opens 1 + n bits, 2 rounds.
* select: five words of key, opens n bits. DReLU on b bits: DCF on b - 1, opens 1 bit. ReLU: DReLU and select.
* b-bit look-up: DPF on b bits, opens 1 + n bits and, in a select, n more.
"""

from __future__ import annotations

from cost_models.peers.tally import Tally

WORD, INT, BLOCK, SHORT = 8, 4, 16, 7
"""Bytes of a word, a header field and an AES block; bits up to which a DCF is a table."""


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def packed(bits: int) -> int:
    """Bytes of so many bits in 32-bit words."""
    return 4 * ceil_div(bits, 32)


def sent(bits: int, elements: int, width: int = WORD) -> Tally:
    """One exchange (gpu_comms.h): one and two bits packed in 32-bit words, others in 64-bit words, `width`-byte elements whole."""
    if bits <= 2:
        size = packed(bits * elements)
    elif bits < 8 * width:
        size = 8 * ceil_div(bits * elements, 64)
    else:
        size = width * elements
    return Tally(size, 1)


def key(size: float) -> Tally:
    """Bytes that the dealer sends each party."""
    return Tally(offline=size, keys=size)


def dcf(bits: int, elements: int, everywhere: bool = False) -> Tally:
    if bits <= SHORT:
        return key(2 * INT + elements * 2 ** max(0, bits - 3))
    advice = 4 * elements if everywhere else packed(elements) * (bits - SHORT)
    return key(6 * INT + elements * BLOCK * (bits - SHORT + 2) + advice)


def corrected_by(bits: int, elements: int, words: int, width: int) -> Tally:
    return dcf(bits, elements) + key(packed(elements) + words * width * elements)


def truncated_with_slack(bits: int, out: int, shift: int, elements: int, width: int = WORD) -> Tally:
    corrected = key(4 * INT) + corrected_by(shift, elements, 3, width)
    return corrected + sent(1, elements) + sent(out, elements, width)


def shifted_right(bits: int, shift: int, elements: int) -> Tally:
    """TrFloor: exact arithmetic shift, and back to the full width."""
    low = key(4 * INT) + corrected_by(shift, elements, 2, WORD) + sent(1, elements)
    low += sent(bits - shift, elements)
    return low + corrected_by(bits - shift, elements, 2, WORD) + sent(1, elements) + sent(bits, elements)


def select(bits: int, elements: int, width: int = WORD, opened: bool = True) -> Tally:
    return key(5 * width * elements) + (sent(bits, elements, width) if opened else Tally())


def looked_up(bits: int, out: int, elements: int, opened: bool = True) -> Tally:
    dpf = key(INT + packed(elements)) + dcf(bits, elements, everywhere=True)
    return dpf + sent(1, elements) + sent(out, elements) + select(out, elements, opened=opened)


def drelu(bits: int, elements: int) -> Tally:
    """Without its opening."""
    return dcf(bits - 1, elements) + key(packed(elements))


def relu(bits: int, out: int, elements: int, width: int = WORD) -> Tally:
    return key(3 * INT) + drelu(bits, elements) + sent(1, elements) + select(out, elements, width)


def size_of(bits: int) -> int:
    """Bytes in which the processor's part sends a ring element."""
    return 8 if bits > 32 else 4 if bits > 16 else 2 if bits > 8 else 1
