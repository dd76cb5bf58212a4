"""A long random run of calls against a plain Python ring: every call must do what the ring does."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tensordict import TensorDict

from conftest import numbers, rows
from tdreplay.api import BaseReplayBuffer
from tdreplay.errors import EmptyTableError, MissingRowsError

SETTINGS = settings(max_examples=25, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))


class Ring:
    """What a replay buffer is, in plain Python: (row id, number) in each slot."""

    def __init__(self, buffer_size: int, write_count: int = 0) -> None:
        self.buffer_size, self.write_count = buffer_size, write_count
        self.slots: dict[int, tuple[int, int]] = {}

    def add(self, number: int) -> None:
        self.slots[self.write_count % self.buffer_size] = (self.write_count, number)
        self.write_count += 1

    def all(self) -> list[tuple[int, int]]:
        return [self.slots[slot] for slot in sorted(self.slots)]


class Model(RuleBasedStateMachine):
    shards = 0
    """Above 1: row ids are those of shards. Each is that of one row, for ever; which one it is does not count."""

    def make(self, buffer_size: int) -> BaseReplayBuffer:
        raise NotImplementedError

    def pairs(self, batch: TensorDict) -> list[tuple[int, int]]:
        """The row ids and the numbers of the rows of a batch, with the ids that the ring has for them."""
        found = list(zip(batch["row_id"].tolist(), numbers(batch), strict=True))
        if self.shards < 2:
            return found
        for row_id, number in found:
            assert self.known.setdefault(row_id, number) == number
        assert len(set(self.known.values())) == len(self.known)
        row_ids = {number: row_id for row_id, number in self.ring.slots.values()}
        return [(row_ids.get(number, -1), number) for _, number in found]

    @initialize(buffer_size=st.integers(1, 12))
    def start(self, buffer_size: int) -> None:
        self.buffer, self.ring, self.number = self.make(buffer_size), Ring(buffer_size), 0
        self.was_reset = False
        self.known: dict[int, int] = {}  # Row id -> the number of its row.
        self.directory = tempfile.TemporaryDirectory()
        self.saved: Ring | None = None

    def take(self, n: int) -> list[int]:
        self.number += n
        return list(range(self.number - n, self.number))

    @rule()
    def add(self) -> None:
        (number,) = self.take(1)
        self.buffer.add(rows(1, number)[0])
        self.ring.add(number)

    @rule(n=st.integers(1, 40))
    def add_batch(self, n: int) -> None:
        taken = self.take(n)
        self.buffer.add_batch(rows(n, taken[0]))
        for number in taken:
            self.ring.add(number)

    @rule(buffer_size=st.none() | st.integers(1, 12))
    def reset(self, buffer_size: int | None) -> None:
        self.buffer.reset(buffer_size)
        self.was_reset, size = True, buffer_size or self.ring.buffer_size
        self.ring = Ring(size, -(-self.ring.write_count // size) * size)

    @rule()
    def save(self) -> None:
        self.buffer.save(Path(self.directory.name) / "saved")
        self.saved = Ring(self.ring.buffer_size, self.ring.write_count)
        self.saved.slots = dict(self.ring.slots)

    @precondition(lambda self: self.saved is not None)
    @rule()
    def load(self) -> None:
        saved, live = self.saved, {row_id for row_id, _ in self.ring.slots.values()}
        wanted = {row_id for row_id, _ in saved.slots.values()}
        fits = saved.buffer_size == self.ring.buffer_size or not (live or wanted)
        if wanted <= live and fits:
            self.buffer.load(Path(self.directory.name) / "saved")
            slots = {slot: row for slot, row in self.ring.slots.items() if row[0] in wanted}
            self.ring = Ring(saved.buffer_size, saved.write_count)
            self.ring.slots = slots
            stored = {number for _, number in slots.values()}
            self.known = {row_id: number for row_id, number in self.known.items() if number in stored}  # Ids of the others are given again.
        else:
            with pytest.raises(MissingRowsError):
                self.buffer.load(Path(self.directory.name) / "saved")

    @rule(data=st.data())
    def sample_by_index(self, data: st.DataObject) -> None:
        index = data.draw(st.lists(st.integers(-13, 12), min_size=1, max_size=20))
        stored = sorted(self.ring.slots)  # Negative numbers count from the last stored row.
        slots = [stored[number] if -len(stored) <= number < 0 else number for number in index]
        wrong = [number for number, slot in zip(index, slots, strict=True) if slot not in self.ring.slots]
        if wrong:
            with pytest.raises(IndexError, match=f"index ({'|'.join(map(str, wrong))}) "):  # It names one of them.
                self.buffer.sample_by_index(index)
        else:
            batch = self.buffer.sample_by_index(index)
            assert self.pairs(batch) == [self.ring.slots[slot] for slot in slots]
            assert batch["index"].tolist() == slots
            assert self.buffer.sample_by_index_fields(index, ["action"])["action"].tolist() == numbers(batch)

    @rule(n=st.integers(1, 30))
    def sample_batch(self, n: int) -> None:
        if not self.ring.slots:
            with pytest.raises(EmptyTableError):
                self.buffer.sample_batch(n)
            return
        batch = self.buffer.sample_batch(n)
        assert self.pairs(batch) == [self.ring.slots[slot] for slot in batch["index"].tolist()]

    @precondition(lambda self: self.ring.slots)
    @rule(batch_size=st.integers(1, 15), n_epochs=st.integers(1, 3), shuffle=st.booleans(), drop_last=st.booleans())
    def epochs(self, batch_size: int, n_epochs: int, shuffle: bool, drop_last: bool) -> None:
        batches = list(self.buffer.create_epoch_iterator(batch_size, n_epochs, shuffle=shuffle, drop_last=drop_last))
        size = len(self.ring.slots)
        per_epoch = size // batch_size if drop_last else self.buffer.calculate_num_batches(batch_size)
        assert len(batches) == n_epochs * per_epoch
        for epoch in range(n_epochs):
            seen = [number for batch in batches[epoch * per_epoch : (epoch + 1) * per_epoch] for number in numbers(batch)]
            stored = [number for _, number in self.ring.all()]
            if shuffle:
                assert set(seen) <= set(stored)
                assert len(set(seen)) == len(seen)
                assert drop_last or sorted(seen) == sorted(stored)
            else:
                assert seen == stored[: len(seen)]

    @invariant()
    def agrees(self) -> None:
        state = self.buffer.state()
        assert (state.buffer_size, state.size) == (self.ring.buffer_size, len(self.ring.slots))
        if not self.was_reset or self.ring.buffer_size >= 2 * self.shards:  # Full shards of one row do not say which is next after a reset.
            assert state.pointer == self.ring.write_count % self.ring.buffer_size
        assert self.shards > 1 or state.write_count == self.ring.write_count
        if self.ring.slots:
            batch = self.buffer.sample_all()
            assert self.pairs(batch) == self.ring.all()

    def teardown(self) -> None:
        if hasattr(self, "buffer"):
            self.buffer.close()
            self.directory.cleanup()
