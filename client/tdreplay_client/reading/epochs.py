"""Epochs over a table of a server: they go on where they stood, whatever becomes of the server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tensordict import TensorDict

from tdreplay.epoch_messages import plan_to_message, progress_from_message
from tdreplay.epochs import START, EpochPlace, EpochPlan, Epochs
from tdreplay.errors import CodecError
from tdreplay.views import TableView
from tdreplay_client.reading.device_transfer import DeviceTransfer, PendingBatch
from tdreplay_client.reading.stream import BatchStream
from tdreplay_client.transport.connection import Connection
from tdreplay_client.transport.retry_budget import RetryBudget
from tdreplay_client.transport.shared_memory import Sharing

__all__ = ["EpochStream", "RemoteEpochs"]


class EpochStream(BatchStream):
    """The batches of a plan from a place on, read ahead.

    Args:
        connection: The connection to the server.
        plan: Which rows come.
        place: Of the first batch.
        transfer: Brings batches to the device.
        prefetch: The most batches that are on their way or wait here.
        sharing: Whether shared memory is used.

    Raises:
        ReplayError: the server refused the query.
    """

    _DRAWN_ANEW = ()  # Its rows are gone.

    def __init__(
        self, connection: Connection, transfer: DeviceTransfer, prefetch: int, sharing: Sharing, plan: EpochPlan, place: EpochPlace = START
    ) -> None:
        self._plan, self._began = plan, place
        super().__init__(connection, plan_to_message(plan, place), transfer, prefetch, sharing)

    def _beginning(self) -> EpochPlace:
        return self._began

    def _query_at(self, place: EpochPlace, budget: RetryBudget) -> Any:
        self._began = place
        return plan_to_message(self._plan, place)

    def _after(self, place: EpochPlace, pending: PendingBatch) -> EpochPlace:
        progress = pending.head.progress
        if pending.number >= len(progress):
            raise CodecError(f"batch {pending.number} of a message came without its progress: the message has that of {len(progress)}")
        return self._place_of(progress[pending.number])

    def _without_batch(self, place: EpochPlace, head: Any) -> EpochPlace:
        return self._place_of(head.progress[-1])

    def _place_of(self, progress: Any) -> EpochPlace:
        found = progress_from_message(progress)
        return replace(found, overwritten=self._began.overwritten + found.overwritten)

    @property
    def place(self) -> EpochPlace:
        """The place of the next batch."""
        found: EpochPlace = self._place
        return found

    def go_back(self, place: EpochPlace) -> None:
        """Makes the batch at `place` the next one."""
        self._place = place
        self.break_off()


class RemoteEpochs(Epochs):
    """The batches of some epochs over a table of a server. The next ones are on their way while one is used.

    Where the server is lost, the iterator waits for it and goes on, for as long as the connection's timeout.

    Args:
        plan: Which rows come.
        open_stream: Opens the stream of a plan from a place on.
        view: What is made of their windows. None: the rows come as they are.

    Raises:
        ReplayError: the server refused the query.
    """

    def __init__(self, plan: EpochPlan, open_stream: Callable[[EpochPlan, EpochPlace], EpochStream], view: TableView | None = None) -> None:
        super().__init__(plan, view)
        self._open_stream = open_stream
        self._stream = open_stream(plan, START)

    @property
    def shared(self) -> bool:
        """Whether batches come through memory that is shared with the server."""
        return self._stream.shared

    def _go_to(self, plan: EpochPlan, place: EpochPlace) -> None:
        self._stream.break_off()  # First: the server may have room for one stream alone. Where the other cannot be opened, this one goes on.
        self._stream, before = self._open_stream(plan, place), self._stream
        before.close()

    def _next(self) -> tuple[TensorDict | None, EpochPlace]:
        batch = next(self._stream, None)
        if batch is not None:
            return batch, self._stream.place
        return None, self._place if self._stopped else self._plan.end(self._stream.place)

    def _break_off(self) -> None:
        self._stream.go_back(self._place)

    def _end(self) -> None:
        self._stream.close()
