"""Counter-based random numbers: a function of their purpose, the same on every machine and numpy version.

Shuffles use Philox (Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3"). Single choices use the
SplitMix64 finaliser (Steele et al. 2014).
"""

import numpy as np
from numpy.typing import NDArray


def shuffle_bits(count: int, seed: int, number: int, data_set: int) -> NDArray[np.uint64]:
    """Random bits whose order is the shuffle ``number`` of a data set: uint64 ``[count]``."""
    key, counter = (np.array(words, dtype=np.uint64) for words in ([seed, number], [0, 0, 0, data_set]))
    bits: NDArray[np.uint64] = np.random.Philox(key=key, counter=counter).random_raw(count)
    return bits


def bits_of(seed: int, *words: int | NDArray[np.integer]) -> NDArray[np.uint64]:
    """64 random bits for each tuple of ``words``, which are whole numbers or arrays of one length: uint64 ``[N]``."""
    state = np.full(max(np.size(word) for word in words), seed, dtype=np.uint64)
    for word in words:
        state = splitmix64(state ^ np.asarray(word).astype(np.uint64))
    return state


def splitmix64(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Map each 64 bits to 64 bits that look random: SplitMix64's counter step and finaliser (modulo 2^64)."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
