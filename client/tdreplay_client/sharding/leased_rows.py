"""Rows of a shard that count as drawn once the batch that they are for is whole."""

from __future__ import annotations

import logging
import weakref
from typing import Any, cast

from tdreplay.errors import CodecError, ReplayError
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay_client.reading.batch_call import BatchCall
from tdreplay_client.reading.device_transfer import DeviceTransfer
from tdreplay_client.reading.named_batches import OneBatch
from tdreplay_client.sharding.shard_batches import ShardBatch
from tdreplay_client.transport.answers import end_call
from tdreplay_client.transport.connection import Connection
from tdreplay_client.transport.retry_budget import RetryBudget
from tdreplay_client.transport.shared_memory import Sharing

__all__ = ["LeasedRows"]

log = logging.getLogger("tdreplay")
LAST_WORDS_SECONDS = 0.5
"""How long the server has to hear what becomes of the rows."""


class LeasedRows:
    """Rows of one shard, which nobody else gets while they are leased. They come over a call of their own, which `end` ends.

    Where nothing refers to them any more, they are given back, too.

    Attributes:
        batch: The rows.

    Args:
        connection: The connection to the server.
        table: The table's name.
        transfer: Brings the rows.
        sharing: Whether shared memory is used.
        one: What they are to be.
        budget: How long it may take.

    Raises:
        ReplayError: they cannot be had.
    """

    def __init__(self, connection: Connection, table: str, transfer: DeviceTransfer, sharing: Sharing, one: OneBatch, budget: RetryBudget) -> None:
        numbers: Any = {} if one.draw is None else {"seed": one.draw[0], "first_batch": one.draw[1]}
        query = pb.SampleRequest(
            table=table,
            batch_size=one.rows,
            sampler=one.kind.sampler,
            knows_priorities=True,
            wait_seconds=one.seconds,
            says_taken=True,
            leases_make_room=True,
            windows=one.kind.windows,
            wants_totals=True,
            **numbers,
        )
        call = self._call = sharing.tried(lambda shared: BatchCall(connection, query, 1, shared, budget))
        self._close = weakref.finalize(self, end_call, call.requests, call.answers)
        call.answers.budget = budget
        call.grant()
        self._batches = call.batches(call.answers, transfer.for_view(one.kind.view))
        try:
            pending = next(self._batches, None)
            if pending is None:
                raise CodecError("the server ended a call before it sent its batch")
            call.credit.came()
            call.take(pending)
            self.batch = cast("ShardBatch", pending.take())
        except BaseException:
            self._close()
            raise

    def say(self, *, taken: bool) -> None:
        """Says whether the rows count as drawn. If not, others get them. It waits for nothing."""
        if taken:
            self._call.say_taken()
        self._call.requests.put(None)

    def end(self) -> None:
        """Waits until the server heard it, for half a second at most."""
        self._call.answers.budget = RetryBudget(LAST_WORDS_SECONDS)
        try:
            next(self._batches, None)
        except ReplayError as error:  # It is lost, and the leases with it: rows that it did not hear of are drawn once more.
            log.warning("a shard may not have heard what became of rows that it gave: %s", error)
        finally:
            self._close()
