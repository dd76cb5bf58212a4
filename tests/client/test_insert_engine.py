"""The engine of inserts by itself: against a model of a server, whatever is lost, comes late, is refused, interrupted or given again."""

from __future__ import annotations

from collections import deque

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tensordict import TensorDict

from interrupts import interrupted_at
from tdreplay.block import decode
from tdreplay.errors import DeadlineError, InternalError, SchemaError
from tdreplay.insert_id import InsertId
from tdreplay.rows import given_row, given_rows
from tdreplay.schema import Schema
from tdreplay_client.writing.insert_engine import FlushPolicy, InsertEngine, WriterEngine, left_of
from tdreplay_client.writing.insert_messages import InsertMessage, InsertMessages, block_layout
from tdreplay_client.writing.insert_state import Batch, Part
from tdreplay_client.writing.unacknowledged import UnacknowledgedInserts, handed_back

SCHEMA = Schema.of({"n": torch.arange(1)})
TWO_ROWS = 2 * SCHEMA.row_bytes


class ModelServer:
    """Stores each block once, by its insert id."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.known: set[InsertId] = set()

    def receive(self, block: InsertMessage) -> int:
        """Stores a block, and gives the number of rows that it acknowledges."""
        rows = decode(block.memory).columns["n"].tolist()
        if block.insert_id not in self.known:
            self.known.add(block.insert_id)
            self.rows += rows
        return len(rows)


class Inserts(RuleBasedStateMachine):
    """A writer's engine. Its rows are numbered in the order in which they were given."""

    @initialize(flush_rows=st.integers(1, 5), max_in_flight=st.integers(1, 4))
    def begin(self, flush_rows: int, max_in_flight: int) -> None:
        self.policy = FlushPolicy(flush_rows, 1.0, max_in_flight)
        self.server, self.records, self.messages = ModelServer(), UnacknowledgedInserts(), InsertMessages("t")
        self.given = self.acknowledged = 0
        self.wire: deque[InsertMessage] = deque()
        self.answers: deque[int] = deque()
        self.late: deque[InsertMessage] = deque()
        self.make_engine()

    def make_engine(self) -> None:
        self.engine = WriterEngine(self.records.writer_ids.take(), self.policy)
        self.now = 0.0

    def numbers(self, count: int) -> torch.Tensor:
        self.given += count
        return torch.arange(self.given - count, self.given)

    # -- what a user does ---------------------------------------------------------------------------------------------------------------------

    @rule()
    def append(self) -> None:
        staging = self.engine.staging
        if staging is None or not staging.room:
            self.engine.seal()
            self.engine.drop_staging()
            self.engine.stage(self.messages, SCHEMA, 1, self.now)
            staging = self.engine.staging
        assert staging is not None
        staging.place(given_row({"n": self.numbers(1)[0]}))
        staging.rows += 1
        if (staging.full or staging.unit_rows >= self.policy.flush_rows) and self.engine.end_unit(staging):
            self.engine.seal()

    @precondition(lambda self: self.engine.state.batch is None)
    @rule(count=st.integers(1, 7))
    def extend(self, count: int) -> None:
        self.engine.seal()
        self.engine.drop_staging()
        self.engine.begin(self.records.claim({"n": self.numbers(count)}, SCHEMA, count))

    @precondition(lambda self: self.engine.state.batch is not None)
    @rule(step=st.integers(1, 12))
    def take_a_part(self, step: int) -> None:
        """An interrupt at any line leaves the part taken, or not taken."""
        before, batch = self.engine.state.taken, self.engine.state.batch
        part = self.engine.next_part(TWO_ROWS)
        assert part is not None
        message = self.messages.new(block_layout(SCHEMA, part.rows), part.insert_id)
        message.fill(batch.columns, part.start, part.stop)
        interrupted_at(step, "tdreplay_client.writing", lambda: self.engine.take(message))
        assert self.engine.state.taken in (before, before + 1)

    @rule(step=st.integers(1, 40))
    def flush(self, step: int) -> None:
        interrupted_at(step, "tdreplay_client.writing", self.engine.seal)

    # -- what a call does ---------------------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.engine.sending is None)
    @rule()
    def open_a_call(self) -> None:
        self.engine.opened()

    @precondition(lambda self: self.engine.sending is not None)
    @rule()
    def send(self) -> None:
        block = self.engine.sending.next()
        if block is not None:
            self.wire.append(block)

    @precondition(lambda self: self.wire)
    @rule()
    def the_server_stores(self) -> None:
        self.answers.append(self.server.receive(self.wire.popleft()))

    @precondition(lambda self: self.answers)
    @rule(step=st.integers(1, 20))
    def an_acknowledgement_comes(self, step: int) -> None:
        before = self.engine.state.acknowledged
        rows = self.answers.popleft()
        interrupted_at(step, "tdreplay_client.writing", lambda: self.engine.acknowledge(rows))
        if self.engine.state.acknowledged == before:
            self.engine.acknowledge(rows)
        self.acknowledged += rows

    @precondition(lambda self: self.engine.sending is not None)
    @rule(arrives=st.booleans())
    def the_call_is_lost(self, arrives: bool) -> None:
        """What was on its way is lost, or arrives later, when another call may be open already."""
        self.late.extend(self.wire if arrives else ())
        self.wire.clear()
        self.answers.clear()
        self.engine.lost()

    @precondition(lambda self: self.late)
    @rule()
    def what_was_late_arrives(self) -> None:
        self.server.receive(self.late.popleft())

    # -- what goes wrong ----------------------------------------------------------------------------------------------------------------------

    @rule()
    def the_writer_fails_and_its_rows_are_given_again(self) -> None:
        self.hand_back(DeadlineError("late"))

    @precondition(lambda self: self.wire and not self.answers and not self.late and self.wire[0].insert_id not in self.server.known)
    @rule()
    def the_server_refuses_a_block(self) -> None:
        self.hand_back(SchemaError("wrong"))

    def hand_back(self, error: Exception) -> None:
        self.late.extend(self.wire if isinstance(error, DeadlineError) else ())
        self.wire.clear()
        self.answers.clear()
        self.engine.lost()
        found = handed_back(self.engine.state, None)
        if found is None:
            return
        rows, batch = found
        assert len(rows) == self.engine.state.rows
        self.records.note(batch, error)
        self.make_engine()
        again = given_rows(rows)
        self.engine.begin(self.records.claim(again.columns(None, cast=False), SCHEMA, len(rows)))

    @rule(rows=st.integers(0, 9))
    def a_wrong_acknowledgement_changes_nothing(self, rows: int) -> None:
        state, sending = self.engine.state, self.engine.sending
        sent = sending is not None and sending.position > state.acknowledged
        if not sent or state.blocks[0].rows != rows:
            with pytest.raises(InternalError, match="acknowledged"):
                self.engine.acknowledge(rows)
            assert self.engine.state is state

    # -- what is always so --------------------------------------------------------------------------------------------------------------------

    @invariant()
    def no_row_is_stored_twice_and_none_is_forgotten(self) -> None:
        assert len(self.server.rows) == len(set(self.server.rows))
        assert self.acknowledged + self.engine.state.rows == self.given

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        while self.engine.state.batch is not None:
            self.take_a_part(1000)
        self.engine.seal()
        self.engine.lost()
        self.wire.clear()
        self.answers.clear()
        sending = self.engine.opened()
        while (block := sending.next()) is not None:
            self.engine.acknowledge(self.server.receive(block))
        assert self.engine.state.rows == 0
        assert sorted(self.server.rows) == list(range(self.given))


TestInserts = Inserts.TestCase
TestInserts.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_batch_that_is_given_again_goes_out_as_it_did():
    records, column = UnacknowledgedInserts(), {"n": torch.arange(10)}
    batch = records.claim(column, SCHEMA, 10)
    engine: InsertEngine[Part] = InsertEngine(records.writer_ids.take())
    engine.begin(batch)
    sending = engine.opened()
    for _ in range(3):
        engine.take(engine.next_part(TWO_ROWS))
        sending.next()
    engine.acknowledge(2)
    assert records.note(left_of(batch, engine), DeadlineError("late"))
    again = records.claim({"n": torch.arange(10)}, SCHEMA, 10)
    assert (again.done, [part[1:] for part in again.parts]) == (2, [(2, 4), (4, 6)])
    assert again.parts == engine.state.blocks
    assert not records.claim(column, SCHEMA, 10).resumed


def test_what_was_sent_over_a_lost_call_is_not_sent_over_it_any_more():
    engine: InsertEngine[Part] = InsertEngine(UnacknowledgedInserts().writer_ids.take())
    engine.begin(Batch({"n": torch.arange(4)}, SCHEMA, 4))
    lost = engine.opened()
    engine.take(engine.next_part(TWO_ROWS))
    first = lost.next()
    engine.lost()
    engine.take(engine.next_part(TWO_ROWS))
    assert lost.next() is None
    now = engine.opened()
    assert [now.next(), now.next(), now.next(), lost.next()] == [first, engine.state.blocks[1], None, None]


def test_units_share_a_block_while_the_server_is_busy():
    engine = WriterEngine(UnacknowledgedInserts().writer_ids.take(), FlushPolicy(1, 1.0, 100))
    for sealed in (True, True, False, False):
        if engine.staging is None:
            engine.stage(InsertMessages("t"), SCHEMA, 1, 5.0)
        engine.staging.place(given_row(TensorDict({"n": torch.tensor(1)}, [])))
        engine.staging.rows += 1
        assert engine.end_unit(engine.staging) is sealed
        if sealed:
            engine.seal()
    assert (len(engine.state.blocks), engine.staging.units, engine.seconds_left(5.75)) == (2, 2, 0.25)
    engine.opened().next()
    engine.acknowledge(1)
    assert engine.has_unit_due
