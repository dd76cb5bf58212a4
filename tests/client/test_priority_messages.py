"""Updates of priorities, cut into messages."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tdreplay.limits import MAX_HEAD_BYTES
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay_client.reading.priority_updates import messages_of, priority_updates


@given(st.lists(st.integers(1, 20_000), max_size=12))
def test_all_updates_go_in_order_in_messages_that_the_server_takes(sizes: list[int]):
    updates = [update for size in sizes for update in priority_updates(np.arange(size), np.ones(size))]
    messages = messages_of(updates)
    assert [update for message in messages for update in message] == updates
    assert all(pb.SampleRequest(updates=message, credits=1 << 62, taken=1 << 62).ByteSize() <= MAX_HEAD_BYTES for message in messages)
    assert len(messages) <= 1 + len(sizes) + sum(size // 8000 for size in sizes)
