"""A long random run of calls on a buffer over shards, against the whole of its rows in a plain Python dict."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from shard_servers import numbered, shard_servers

from tdreplay.errors import EmptyTableError
from tdreplay.priorities import Updated
from tdreplay_client import Prioritized, ShardedReplayBuffer

SETTINGS = settings(max_examples=6, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck))
priorities = st.sampled_from([0.5, 1.0, 2.0, 4.0])


class Model(RuleBasedStateMachine):
    """Attributes:

    weights: The number of each stored row, from the oldest on -> its priority, which is also its mass.
    row_ids: Number -> the row id that the buffer gave, of all rows that ever were.
    """

    addresses: list[str]
    tables: Iterator[str]

    @initialize(buffer_size=st.integers(4, 40))
    def start(self, buffer_size: int) -> None:
        sampler = Prioritized(alpha=1.0)
        self.buffer = ShardedReplayBuffer(self.addresses, table=next(self.tables), buffer_size=buffer_size, sampler=sampler)
        self.buffer_size, self.count = buffer_size, 0
        self.weights: dict[int, float] = {}
        self.row_ids: dict[int, int] = {}

    @rule(rows=st.integers(1, 50), priority=priorities)
    def add(self, rows: int, priority: float) -> None:
        self.buffer.add_batch(numbered(self.count, rows), priorities=[priority] * rows)
        self.weights |= dict.fromkeys(range(self.count, self.count + rows), priority)
        self.count += rows
        for number in list(self.weights)[: -self.buffer_size]:
            del self.weights[number]
        stored = self.buffer.sample_all()
        self.row_ids |= dict(zip(stored["number"].tolist(), stored["row_id"].tolist(), strict=True))

    @precondition(lambda self: self.row_ids)
    @rule(data=st.data(), priority=priorities)
    def update(self, data: st.DataObject, priority: float) -> None:
        numbers = data.draw(st.lists(st.sampled_from(sorted(self.row_ids)), min_size=1, max_size=20, unique=True))
        live = [number for number in numbers if number in self.weights]
        found = self.buffer.update_priorities([self.row_ids[number] for number in numbers], priority)
        assert found == Updated(len(live), len(numbers) - len(live))
        self.weights |= dict.fromkeys(live, priority)

    @rule(rows=st.integers(1, 60), uniform=st.booleans())
    def draw(self, rows: int, uniform: bool) -> None:
        if not self.weights:
            with pytest.raises(EmptyTableError):
                self.buffer.sample_batch(rows, uniform=uniform)
            return
        batch = self.buffer.sample_batch(rows, uniform=uniform)
        numbers, mass = batch["number"].tolist(), sum(self.weights.values())
        assert batch["row_id"].tolist() == [self.row_ids[number] for number in numbers]
        if not uniform:
            assert batch["priority"].tolist() == [self.weights[number] for number in numbers]
            assert batch["probability"].tolist() == pytest.approx([self.weights[number] / mass for number in numbers])
            assert set(batch["table_size"].tolist()) == {len(self.weights)}
            assert batch["min_probability"].tolist() == pytest.approx([min(self.weights.values()) / mass] * rows)

    @precondition(lambda self: self.weights)
    @rule(shuffle=st.booleans(), batch_size=st.integers(1, 20))
    def epoch(self, shuffle: bool, batch_size: int) -> None:
        came = [number for batch in self.buffer.epochs(batch_size, shuffle=shuffle) for number in batch["number"].tolist()]
        assert sorted(came) == list(self.weights)
        assert shuffle or came == sorted(came, key=lambda number: number % self.buffer_size)

    @rule()
    def reset(self) -> None:
        self.buffer.reset()
        self.weights.clear()
        self.row_ids.clear()
        self.count = 0

    @invariant()
    def holds_its_rows(self) -> None:
        assert len(self.buffer) == len(self.weights)
        if self.weights:
            stored = self.buffer.sample_all()
            assert stored["number"].tolist() == sorted(self.weights, key=lambda number: number % self.buffer_size)
            assert stored["index"].tolist() == [number % self.buffer_size for number in stored["number"].tolist()]

    def teardown(self) -> None:
        if hasattr(self, "buffer"):
            self.buffer.drop()
            self.buffer.close()


@pytest.mark.parametrize("shards", [2, 3])
def test_the_whole_is_what_one_table_would_be(table, shards) -> None:
    with shard_servers(shards) as addresses:
        members = {"addresses": addresses, "tables": (f"{table}-{number}" for number in range(1000))}
        run_state_machine_as_test(type("Machine", (Model,), members), settings=SETTINGS)
