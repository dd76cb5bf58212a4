"""Random orders of any number of rows, computed where they are asked for, in memory that does not grow with the rows.

A Feistel network (Luby and Rackoff, How to Construct Pseudorandom Permutations, 1988) permutes all numbers of so many bits. A number that leaves the
range is permuted again until it is back in it (cycle walking: Black and Rogaway, Ciphers with Arbitrary Finite Domains, CT-RSA 2002).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tdreplay.selecting import Slots

__all__ = ["RandomOrder"]

ROUNDS, MORE_ROUNDS, FEW_BITS = 6, 16, 9
"""How often a number is mixed, and how often one of so few bits: its halves hold little to mix."""

FACTORS: dict[int, tuple[int, int]] = {32: (0x9E3779B1, 0x85EBCA77), 64: (0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93)}
"""Bits of a word -> odd numbers whose multiples look random: the golden ratio's, and one of MurmurHash3's or SplitMix's kind."""

Words: TypeAlias = "npt.NDArray[np.unsignedinteger[Any]]"


@dataclass(frozen=True)
class RandomOrder:
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
    def keyed(cls, size: int, seed: int, number: int) -> RandomOrder:
        """The order number `number` of a seed: the same for the same three numbers, always."""
        bits = (size - 1).bit_length()
        word: type[np.unsignedinteger[Any]] = np.uint32 if bits <= 32 else np.uint64
        rounds = ROUNDS if bits > FEW_BITS else MORE_ROUNDS
        return cls(size, bits // 2, bits - bits // 2, np.random.SeedSequence((seed, number)).generate_state(rounds, word))

    def at(self, places: Slots) -> Slots:
        """The numbers at some places of the order, each from 0 to `size` - 1."""
        found = self._permuted(places.astype(self.keys.dtype))
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
