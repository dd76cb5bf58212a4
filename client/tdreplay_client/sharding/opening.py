"""How the shards of a buffer are opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tdreplay.description_messages import description_from_message
from tdreplay.table_config import TableRequest
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay_client.sharding.members import Member
from tdreplay_client.sharding.shard import LOSS_SECONDS, Shard, ShardPlace
from tdreplay_client.sharding.shard_table import ShardTable
from tdreplay_client.sharding.shares import share_of
from tdreplay_client.transport.targets import found_access

__all__ = ["Opening", "member_of"]


@dataclass(frozen=True)
class Opening:
    """What is the same for all shards of a buffer. It can be pickled; the token is in it.

    Attributes:
        request: What is asked of the whole buffer.
        timeout: Seconds that a call waits for an answer, and for a lost server.
        transport, cast: As in the constructor of `RemoteReplayBuffer`.
        access: The arguments ``tls``, ``token`` and ``profile`` of that constructor.
        goes_on: Whether the buffer goes on without shards that are lost.
    """

    request: TableRequest
    timeout: float
    transport: Literal["auto", "shared_memory", "grpc"]
    cast: bool
    access: Mapping[str, Any]
    goes_on: bool

    def shard(self, place: ShardPlace, position: int, shards: int) -> Shard:
        """A shard that has the part of the whole buffer which belongs to that position among so many. Nothing is connected yet."""
        request, access = share_of(self.request, position, shards), found_access(place.address, **self.access)

        def table(timeout: float) -> ShardTable:
            return ShardTable.unconnected(place.address, request, timeout, self.transport, self.cast, access)

        writes = table(self.timeout)
        return Shard(place, writes, table(min(LOSS_SECONDS, self.timeout)) if self.goes_on else writes)


def member_of(shard: Shard, answer: pb.DescribeResponse) -> Member:
    """What a server says of itself as a shard."""
    description = description_from_message(answer, shard.writes.table)
    return Member(shard.place, description, answer.cluster, answer.shard if answer.HasField("shard") else None)
