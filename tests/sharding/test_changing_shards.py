"""What is asked of a buffer while its shards come and go."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress

from shard_servers import numbered, shard_servers

from tdreplay.errors import SlotIndexError
from tdreplay_client import ShardedReplayBuffer
from tdreplay_client.sharding.shard import ShardPlace

CHANGES = 3
SECONDS = 60


class ChangingDirectory:
    """Two shards, and a third one each second time that it is asked."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._places, self.asked = [ShardPlace(number, address) for number, address in enumerate(addresses)], 0

    def places(self) -> Sequence[ShardPlace]:
        self.asked += 1
        return self._places[: 2 + self.asked % 2]


def test_descriptions_states_and_slots_are_given_while_shards_come_and_go():
    with shard_servers(3) as addresses:
        directory = ChangingDirectory(addresses)
        with ShardedReplayBuffer(directory, buffer_size=3000) as buffer:
            buffer.add_batch(numbered(0, 3000))
            until = time.monotonic() + SECONDS
            while directory.asked <= CHANGES:
                assert time.monotonic() < until
                assert len(buffer.describe().shards) in (2, 3)
                assert buffer.state().size in (2000, 3000)
                with suppress(SlotIndexError):  # Of a slot that is there over three shards, and not over two.
                    assert buffer.sample_by_index(slice(-1, None)).shape == (1,)
