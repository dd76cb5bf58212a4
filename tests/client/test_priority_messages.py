"""Updates of priorities share messages, and keep their place among the other requests."""

from __future__ import annotations

import queue
import threading
import time

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tdreplay.limits import MAX_HEAD_BYTES
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay_client.reading.priority_updates import priority_updates, together


def update(rows: int, priority: float = 1.0) -> list[pb.SampleRequest]:
    return [pb.SampleRequest(updates=[part]) for part in priority_updates(np.arange(rows), np.full(rows, priority))]


requests = st.lists(
    st.one_of(st.integers(1, 9000).map(update), st.integers(1, 9).map(lambda batches: [pb.SampleRequest(credits=batches)])), max_size=30
)


@given(requests)
@settings(deadline=None)
def test_nothing_is_lost_or_out_of_place_and_each_message_is_taken_by_the_server(given):
    sent = [pb.SampleRequest(table="t"), *(request for some in given for request in some)]
    expected = [part for request in sent for part in (*request.updates, *([request.credits] if request.credits else []))]
    waiting: queue.SimpleQueue[pb.SampleRequest | None] = queue.SimpleQueue()
    for request in (*sent, None):
        waiting.put(request)
    came = list(together(waiting))
    assert [part for request in came for part in (*request.updates, *([request.credits] if request.credits else []))] == expected
    assert all(request.ByteSize() <= MAX_HEAD_BYTES for request in came)


def test_updates_that_come_together_go_together_with_the_grant_behind_them():
    waiting: queue.SimpleQueue[pb.SampleRequest | None] = queue.SimpleQueue()
    for request in (*update(4), *update(4), pb.SampleRequest(credits=2), *update(4), None):
        waiting.put(request)
    first, second = together(waiting)
    assert (len(first.updates), first.credits) == (2, 2)
    assert (len(second.updates), second.credits) == (1, 0)


def test_an_update_that_nothing_follows_goes_by_itself():
    waiting: queue.SimpleQueue[pb.SampleRequest | None] = queue.SimpleQueue()
    waiting.put(*update(4))
    closing = threading.Timer(10, lambda: waiting.put(None))
    closing.start()
    began = time.monotonic()
    assert next(together(waiting)).updates
    assert time.monotonic() - began < 5
    closing.cancel()
