"""Random numbers without state: a uniform number as a pure function of (seed, sequence index, position).

The generator is Philox4x32-10: J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel random numbers: as easy
as 1, 2, 3", SC'11. The seed is its key; position and sequence index are its counter.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW_32 = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
_LOW_64 = 0xFFFFFFFFFFFFFFFF

Words = NDArray[np.uint64]


def uniforms(seeds: Sequence[int], sequence_indices: Sequence[int], positions: Sequence[int]) -> NDArray[np.float64]:
    """One number in [0, 1) for each (seed, sequence index, position), a multiple of 2**-53.

    Each argument counts modulo 2**64, so seeds may be negative.
    """
    key_low, key_high = _split(seeds)
    position_low, position_high = _split(positions)
    sequence_low, sequence_high = _split(sequence_indices)
    first, second, _, _ = philox4x32((position_low, position_high, sequence_low, sequence_high), (key_low, key_high))
    bits = ((first << _32) | second) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53


def philox4x32(counter: tuple[Words, Words, Words, Words], key: tuple[Words, Words]) -> tuple[Words, ...]:
    """The four 32-bit words that Philox4x32-10 gives for a counter and a key of 32-bit words, each held in 64 bits."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        product_0 = c0 * _MULTIPLIERS[0]
        product_1 = c2 * _MULTIPLIERS[1]
        c0, c1 = (product_1 >> _32) ^ c1 ^ k0, product_1 & _LOW_32
        c2, c3 = (product_0 >> _32) ^ c3 ^ k1, product_0 & _LOW_32
        k0 = (k0 + _KEY_STEPS[0]) & _LOW_32
        k1 = (k1 + _KEY_STEPS[1]) & _LOW_32
    return c0, c1, c2, c3


def _split(integers: Sequence[int]) -> tuple[Words, Words]:
    words = np.array([integer & _LOW_64 for integer in integers], dtype=np.uint64)
    return words & _LOW_32, words >> _32
