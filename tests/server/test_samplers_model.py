"""Each sampler, whatever happens to the rows, against what is true of them in plain dictionaries."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import rule

from sampler_machine import PriorityMachine, SamplerMachine, short
from tdreplay.samplers import Fifo, Lifo, MaxHeap, MinHeap, Prioritized, Uniform, WithoutReplacement
from tdreplay_server.tables.samplers import Draw


class UniformMachine(SamplerMachine):
    value = Uniform()

    def check(self, drawn: Draw, rows: int) -> None:
        assert drawn.probabilities is None
        assert drawn.priorities is None
        assert drawn.min_probability == 1 / len(self.drawable)

    @rule(seed=st.integers(0, 9))
    def draw_by_rank(self, seed: int) -> None:
        """The ids are those at uniform ranks among the rows that may be drawn."""
        if self.drawable:
            ranks = np.random.default_rng(seed).integers(0, len(self.drawable), 20)
            assert self.played.ids(20, seed) == [self.drawable[rank] for rank in ranks]


class PrioritizedMachine(PriorityMachine):
    value = Prioritized(0.6)

    def check(self, drawn: Draw, rows: int) -> None:
        weights = {row_id: self.rows[row_id] ** self.value.alpha if self.rows[row_id] else 0.0 for row_id in self.drawable}
        if not any(weights.values()):
            weights = dict.fromkeys(weights, 1.0)
        total = sum(weights.values())
        ids = drawn.ids.tolist()
        assert drawn.probabilities == pytest.approx([weights[row_id] / total for row_id in ids], rel=1e-9)
        assert (drawn.probabilities > 0).all()
        assert drawn.priorities.tolist() == [self.rows[row_id] for row_id in ids]
        assert drawn.min_probability == pytest.approx(min(weight for weight in weights.values() if weight) / total, rel=1e-9)


class EvenlyPrioritizedMachine(PrioritizedMachine):
    value = Prioritized(0.0)


class OrderMachine(SamplerMachine):
    def in_order(self) -> list[int]:
        raise NotImplementedError

    def check(self, drawn: Draw, rows: int) -> None:
        assert drawn.ids.tolist() == 2 * np.resize(self.in_order(), rows).tolist()


class FifoMachine(OrderMachine):
    value = Fifo()

    def in_order(self) -> list[int]:
        return self.drawable


class LifoMachine(OrderMachine):
    value = Lifo()

    def in_order(self) -> list[int]:
        return self.drawable[::-1]


class HeapMachine(OrderMachine, PriorityMachine):
    def check(self, drawn: Draw, rows: int) -> None:
        super().check(drawn, rows)
        assert drawn.priorities.tolist() == [self.rows[row_id] for row_id in drawn.ids.tolist()]


class MaxHeapMachine(HeapMachine):
    value = MaxHeap()

    def in_order(self) -> list[int]:
        return sorted(self.drawable, key=lambda row_id: (-self.rows[row_id], row_id))


class MinHeapMachine(HeapMachine):
    value = MinHeap()

    def in_order(self) -> list[int]:
        return sorted(self.drawable, key=lambda row_id: (self.rows[row_id], row_id))


class WithoutReplacementMachine(SamplerMachine):
    value = WithoutReplacement()

    def __init__(self) -> None:
        super().__init__()
        self.passed: set[int] = set()

    def _forget(self) -> None:
        before = set(self.rows)
        super()._forget()
        self.passed -= before - self.rows.keys()

    def check(self, drawn: Draw, rows: int) -> None:
        left = set(self.drawable) - self.passed
        for row_id in drawn.ids.tolist():
            if not left:
                self.passed.clear()
                left = set(self.drawable)
            assert row_id in left
            left.remove(row_id)
            self.passed.add(row_id)


def _test_of(machine: type[SamplerMachine]):
    case = machine.TestCase
    case.settings = short
    return case


TestUniform = _test_of(UniformMachine)
TestPrioritized = _test_of(PrioritizedMachine)
TestEvenlyPrioritized = _test_of(EvenlyPrioritizedMachine)
TestFifo = _test_of(FifoMachine)
TestLifo = _test_of(LifoMachine)
TestMaxHeap = _test_of(MaxHeapMachine)
TestMinHeap = _test_of(MinHeapMachine)
TestWithoutReplacement = _test_of(WithoutReplacementMachine)
