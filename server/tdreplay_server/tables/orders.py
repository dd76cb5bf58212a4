"""Random orders of any number of rows, in memory that does not grow with it.

Up to `LISTED` positions are shuffled in a list. A longer order is computed where it is asked for. A Feistel network (Luby and Rackoff, How to
Construct Pseudorandom Permutations, 1988) permutes all numbers of so many bits. A number that leaves the range is permuted again until it is back in
it. That is no slower than a list which does not fit into the processor's cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tdreplay.selecting import Slots

__all__ = ["Order", "random_order"]

Order: TypeAlias = "Callable[[int, int], Slots]"
"""(start, stop) -> the positions from start to stop of the order."""

LISTED = 1 << 20
ROUNDS = 6
FACTORS: dict[int, tuple[int, int]] = {32: (0x9E3779B1, 0x85EBCA77), 64: (0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93)}
"""Bits of a word -> odd numbers whose multiples look random: the golden ratio's, and one of MurmurHash3's or SplitMix's kind."""

Words: TypeAlias = "npt.NDArray[np.unsignedinteger[Any]]"


def random_order(size: int, generator: np.random.Generator) -> Order:
    """A random order of the positions from 0 to `size` - 1."""
    if size > LISTED:
        return Network.drawn(size, generator).positions
    listed = generator.permutation(np.arange(size, dtype=np.int32))
    return lambda start, stop: listed[start:stop].astype(np.int64)


@dataclass(frozen=True)
class Network:
    """A permutation of the numbers below `size`.

    Attributes:
        size: How many numbers there are.
        low: The number of bits in the lower part of a number.
        high: The number of bits in the upper part.
        keys: One word for each round. Their dtype is the one in which all is computed.
    """

    size: int
    low: int
    high: int
    keys: Words

    @classmethod
    def drawn(cls, size: int, generator: np.random.Generator) -> Network:
        """A random permutation."""
        bits = (size - 1).bit_length()
        word = 32 if bits <= 32 else 64
        keys = generator.integers(0, 1 << word, ROUNDS, dtype=np.dtype(f"u{word // 8}").type)
        return cls(size, bits // 2, bits - bits // 2, keys)

    def positions(self, start: int, stop: int) -> Slots:
        """The positions from start to stop of the order."""
        found = self._permuted(np.arange(start, stop, dtype=self.keys.dtype))
        outside = np.flatnonzero(found >= self.size)
        while len(outside):
            found[outside] = again = self._permuted(found[outside])
            outside = outside[again >= self.size]
        return found.astype(np.int64)

    def _permuted(self, numbers: Words) -> Words:
        word = self.keys.dtype.type
        low: Words = numbers & word((1 << self.low) - 1)
        upper: Words = numbers >> word(self.low)
        for turn, key in enumerate(self.keys):
            if turn % 2:
                upper ^= self._mixed(low, key, self.high)
            else:
                low ^= self._mixed(upper, key, self.low)
        upper <<= word(self.low)
        upper |= low
        return upper

    def _mixed(self, part: Words, key: Any, bits: int) -> Words:
        """For each number `bits` bits that look random, made of the number and the key."""
        word, size = self.keys.dtype.type, 8 * self.keys.dtype.itemsize
        first, second = FACTORS[size]
        mixed: Words = part + key
        mixed *= word(first)
        mixed ^= mixed >> word(size // 2 - 1)
        mixed *= word(second)
        mixed >>= word(size - bits)
        return mixed
