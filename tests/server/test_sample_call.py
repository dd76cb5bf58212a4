"""What a Sample call keeps of the messages that come while it waits."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from tdreplay.errors import InvalidArgumentError
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay_server.transport.call import Request
from tdreplay_server.transport.sample_call import read_ahead


def requests(*heads: pb.SampleRequest, read: threading.Event | None = None) -> Iterator[Request]:
    for head in heads:
        yield Request(head, np.empty(0, np.uint8))
    if read is not None:
        read.set()


def test_messages_that_come_meanwhile_are_kept_as_one_without_what_they_say_beside():
    read, noted = threading.Event(), []
    sent = [pb.SampleRequest(credits=2, released_slots=[number % 2], fields=["x"] * 1000, taken=number) for number in range(100)]
    heard = read_ahead(requests(*sent, read=read), noted.append)
    assert read.wait(30)
    found = list(heard)
    assert [head.taken for head in noted] == list(range(100))
    assert sum(request.head.credits for request in found) == 200
    assert [slot for request in found for slot in request.head.released_slots] == [0, 1] * 50
    assert len(found) == 1
    assert not found[0].head.fields


@pytest.mark.parametrize(
    "wrong",
    [pb.SampleRequest(credits=-1), pb.SampleRequest(credits=(1 << 63) - 1), pb.SampleRequest(released_slots=[0] * 1000)],
    ids=["negative", "overflow", "slots"],
)
def test_what_cannot_be_ends_the_call_after_what_came_before(wrong):
    heard = read_ahead(requests(pb.SampleRequest(credits=3), wrong), bool)
    assert next(heard).head.credits == 3
    with pytest.raises(InvalidArgumentError):
        next(heard)
