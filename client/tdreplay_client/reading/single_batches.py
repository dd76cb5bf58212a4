"""Random batches that are asked for one at a time."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

from tensordict import TensorDict

from tdreplay.errors import DeadlineError, OverloadedError, RateLimitedError, ReplayError
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay.views import TableView
from tdreplay.window_messages import window_query_to_message
from tdreplay_client.reading.batch_call import BatchCall
from tdreplay_client.reading.device_transfer import DeviceTransfer, PendingBatch
from tdreplay_client.transport.answers import end_call
from tdreplay_client.transport.connection import Connection
from tdreplay_client.transport.retry_budget import RetryBudget, jittered
from tdreplay_client.transport.shared_memory import Sharing

__all__ = ["RETRY_SECONDS", "Asked", "Draw", "SingleBatches"]

Draw = tuple[int, int] | None
"""How a random batch is drawn: with a seed, as the batch of that number of the seed. None: by chance."""

RETRY_SECONDS = 5.0
"""How long no call is held open after the server had too much to do."""


class Asked(NamedTuple):
    """What a random batch is asked to be.

    Attributes:
        rows: its number of rows.
        sampler: what chooses them; '' for the sampler of the table.
        view: what is made of the windows around them; None: the rows come alone.
    """

    rows: int
    sampler: str = ""
    view: TableView | None = None

    @property
    def windows(self) -> pb.WindowQuery | None:
        """The windows, as a request has them."""
        return None if self.view is None else window_query_to_message(self.view.windows)


class SingleBatches:
    """Random batches, each drawn when it is asked for, over a Sample call that is held open: this takes half as long as a call for each.

    Args:
        connection: the connection to the server.
        table: the table's name.
        transfer: brings batches to the device.
        sharing: whether shared memory is used.
    """

    def __init__(self, connection: Connection, table: str, transfer: DeviceTransfer, sharing: Sharing) -> None:
        self._connection, self._table, self._transfer, self._sharing = connection, table, transfer, sharing
        self._lock = threading.Lock()
        self._asked_for: Asked | None = None
        self._not_before = 0.0
        self._batches: Iterator[PendingBatch] | None = None
        self._call: BatchCall | None = None
        self._end: Any = None
        self._next: Draw = None  # The draw of the batch that the call brings next.

    def take(self, asked: Asked, draw: Draw, budget: RetryBudget) -> TensorDict | None:
        """A batch. None: it needs a call of its own, because it is the first one of its kind, another thread uses the call, or the call failed.

        Args:
            asked: what it is asked to be.
            draw: its seed and number, or None. The call that is held open goes on with the next number; any other number takes another call.
            budget: how long it may take.

        Raises:
            DeadlineError: the server does not answer.
            RateLimitedError: it waited for as long as it might.
        """
        self._connection.check_open()
        if time.monotonic() < self._not_before or not self._lock.acquire(blocking=False):
            return None
        try:
            return self._taken(asked, draw, budget)
        except (DeadlineError, RateLimitedError):
            self.close()
            raise
        except ReplayError as error:  # A call of its own will say what is wrong; the table may be another one by now.
            self.close()
            if isinstance(error, OverloadedError):
                self._not_before = time.monotonic() + jittered(RETRY_SECONDS)
            return None
        except BaseException:
            self.close()
            raise
        finally:
            self._lock.release()

    def _taken(self, asked: Asked, draw: Draw, budget: RetryBudget) -> TensorDict | None:
        if asked != self._asked_for:
            self.close()
            self._asked_for = asked
            return None
        call = self._call  # The buffer may be closed meanwhile, by another thread.
        if call is None or not call.answers.active or draw != self._next:
            self.close()
            self._open(asked, draw, budget)
        call, batches = self._call, self._batches
        if call is None or batches is None or not self._grant(call, budget):
            return None
        self._next = None if draw is None else (draw[0], draw[1] + 1)
        pending = next(batches, None)
        if pending is None:
            return None
        call.credit.came()
        call.credit.take()
        return pending.take()

    def _grant(self, call: BatchCall, budget: RetryBudget) -> int:
        call.answers.budget = budget
        return call.grant()

    def _open(self, asked: Asked, draw: Draw, budget: RetryBudget) -> None:
        numbers: Any = {} if draw is None else {"seed": draw[0], "first_batch": draw[1]}
        query = pb.SampleRequest(
            table=self._table,
            batch_size=asked.rows,
            sampler=asked.sampler,
            standing=True,
            knows_priorities=True,
            wait_seconds=self._connection.server_wait,
            windows=asked.windows,
            **numbers,
        )
        call = self._sharing.tried(lambda shared: BatchCall(self._connection, query, 1, shared, budget))
        self._end = weakref.finalize(self, end_call, call.requests, call.answers)
        self._call, self._batches = call, call.batches(call.answers, self._transfer.for_view(asked.view))

    def close(self) -> None:
        """Ends the call that is held open. Closing twice is allowed."""
        if self._end is not None:
            self._end()
        self._call = self._batches = self._end = None
