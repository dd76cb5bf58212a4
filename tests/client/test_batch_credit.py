"""The credit of a call that brings batches, by itself: against a model of a server, whatever the user keeps."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tdreplay.errors import CodecError, InternalError
from tdreplay_client.reading.batch_credit import BatchCredit

MESSAGE = -1
"""Where a batch lies that came in a message."""


class Reading(RuleBasedStateMachine):
    """Batches lie in segments or in messages. They are on their way, wait to be taken, or are kept by the user."""

    @initialize(window=st.integers(1, 9), spare=st.integers(0, 2), shared=st.booleans())
    def begin(self, window: int, spare: int, shared: bool) -> None:
        self.segments = window + spare if shared else 0
        self.reserve = min(2, window)
        self.credit = BatchCredit(window, self.segments, self.reserve)
        self.limit = window
        self.credits = self.granted = self.taken_count = self.said = 0
        self.free = list(range(self.segments))  # As the server knows.
        self.waiting: deque[int] = deque()
        self.kept: list[int] = []

    @rule()
    def grant(self) -> None:
        granted = self.credit.grant()
        if granted:
            self.granted += granted
            self.credits += granted
            self.free += self.credit.returned()

    @precondition(lambda self: self.credits)
    @rule(in_message=st.booleans())
    def a_batch_comes(self, in_message: bool) -> None:
        """The server has a segment for each batch that it was granted, or it would have to wait."""
        assert self.free or not self.segments
        self.credits -= 1
        place = MESSAGE if in_message or not self.segments else self.free.pop(0)
        if place != MESSAGE:
            self.credit.borrow(place)
            with pytest.raises(CodecError, match="twice"):
                self.credit.borrow(place)
        self.credit.came()
        self.waiting.append(place)

    @precondition(lambda self: not self.credits)
    @rule()
    def a_batch_that_was_not_granted_is_an_error(self) -> None:
        with pytest.raises(InternalError, match="more batches than it was granted"):
            self.credit.came()

    @precondition(lambda self: self.waiting)
    @rule()
    def the_user_takes_a_batch(self) -> None:
        """A batch that cannot be lent is copied, and its segment given back."""
        place = self.waiting.popleft()
        self.credit.take()
        self.taken_count += 1
        assert self.credit.unsaid == self.taken_count - self.said
        if place != MESSAGE:
            self.kept.append(place) if self.credit.lend(place) else self.credit.give_back(place)

    @rule()
    def the_server_is_told_what_was_taken(self) -> None:
        self.said = self.credit.say_taken()
        assert (self.said, self.credit.unsaid) == (self.taken_count, 0)

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def the_user_drops_a_batch(self, data) -> None:
        self.credit.give_back(self.kept.pop(data.draw(st.integers(0, len(self.kept) - 1))))

    @invariant()
    def no_more_is_granted_than_the_window_and_the_segments_take(self) -> None:
        assert self.credit.due == self.granted - self.taken_count <= self.limit
        if self.segments:
            assert len(self.kept) <= self.segments - self.reserve
            assert self.credit.unreturned + self.credits <= self.segments

    def teardown(self) -> None:
        """Whatever the user keeps, the next batches come."""
        if not hasattr(self, "credit"):
            return
        for _ in range(3):
            while self.credits:
                self.a_batch_comes(in_message=False)
            while self.waiting:
                self.the_user_takes_a_batch()
            self.grant()
            assert self.credits


TestReading = Reading.TestCase
TestReading.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize(("window", "grants"), [(1, [1, 1]), (2, [2, 1]), (8, [8, 4])])
def test_credits_are_granted_in_groups_of_half_the_window(window, grants):
    credit = BatchCredit(window)
    granted = [credit.grant()]
    for _ in range(granted[0]):
        credit.came()
    while len(granted) < len(grants):
        credit.take()
        granted += [number for number in [credit.grant()] if number]
    assert granted == grants


def test_a_batch_is_granted_though_every_segment_is_in_use():
    """It comes in a message. The memory of a batch that was copied may be in use for a while, beside those that the user keeps."""
    credit = BatchCredit(window=1, segments=3, reserve=1)
    for segment in range(3):
        assert credit.grant() == 1
        credit.borrow(segment)
        credit.came()
        credit.take()
    assert (credit.unreturned, credit.grant(), credit.grant()) == (3, 1, 0)
