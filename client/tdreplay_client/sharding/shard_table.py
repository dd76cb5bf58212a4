"""The table of one shard."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar, cast

import numpy as np
import numpy.typing as npt

from tdreplay.epochs import EpochQuery
from tdreplay.errors import OverwrittenError, RateLimitedError, TableNotFoundError, UnimplementedError
from tdreplay.limits import DEFAULT_TABLE
from tdreplay.metadata import Metadata
from tdreplay.progress import Progress
from tdreplay.samplers import Uniform
from tdreplay.selecting import Slots
from tdreplay.table_config import TableRequest
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay.views import TableView
from tdreplay.window_messages import window_query_to_message
from tdreplay_client.buffer import RemoteReplayBuffer
from tdreplay_client.reading.assembly import assemble
from tdreplay_client.reading.device_transfer import DeviceTransfer
from tdreplay_client.reading.named_batches import BegunBatch, NamedBatches, OneBatch
from tdreplay_client.reading.placed_call import PlacedCall
from tdreplay_client.sharding.epoch_answers import EpochAnswer
from tdreplay_client.sharding.epoch_plan import ShardWindow
from tdreplay_client.sharding.leased_rows import LeasedRows
from tdreplay_client.sharding.shard_batches import ColumnTransfer, ShardBatch, Totals
from tdreplay_client.transport.access import Access
from tdreplay_client.transport.batch_memory import BatchMemory
from tdreplay_client.transport.retry_budget import RetryBudget
from tdreplay_client.writing.known_schema import WriterSchema
from tdreplay_client.writing.leaving_writer import LeavingWriter

__all__ = ["ShardTable", "TotalsNow"]

T = TypeVar("T")


class TotalsNow(NamedTuple):
    """What a shard says of itself when it is asked of what it would draw.

    Attributes:
        totals: Of what it would draw a batch.
        generation_id: Of its table.
        size: The rows that are stored, be they drawn or not.
    """

    totals: Totals
    generation_id: str
    size: int


class ShardTable(RemoteReplayBuffer):
    """A table of a server that is one shard of a buffer. Its batches are `ShardBatch`es: columns, in the host's memory, with no view made of them.

    Row ids and slots are those of the server.
    """

    _wants_totals = True

    @classmethod
    def unconnected(
        cls, address: str, request: TableRequest, timeout: float, transport: Literal["auto", "shared_memory", "grpc"], cast: bool, access: Access
    ) -> ShardTable:
        """The table at `address`, to which nothing is connected yet. `request` is what `connect` asks of it; the rest is as in the constructor."""
        made = cls.__new__(cls)
        made._open(address, "cpu", request, timeout, transport, cast, None, access)
        return made

    def connect(self) -> pb.DescribeResponse:
        """Creates the table where it was asked for and is not there, and gives what the server says of it.

        Raises:
            TableNotFoundError, TableExistsError: as the constructor of `RemoteReplayBuffer`.
        """
        try:
            self._connection.retried(self._agree)
        except TableNotFoundError as error:
            raise TableNotFoundError(f"on {self.address}, {error}") from None
        return self.answer()

    def look_before(self) -> tuple[pb.DescribeResponse, bool]:
        """What the server says of the table before `connect`, and whether it is there. Where it is not, what it says of its first table."""
        try:
            answer = self.answer()
        except TableNotFoundError:
            return cast("pb.DescribeResponse", self._connection.retried(self._first_table)), False
        return answer, self._table != DEFAULT_TABLE or bool(answer.write_count) or self._is_made()

    def _is_made(self) -> bool:
        """Whether the table is there. A server describes its first one before."""
        listed = self._connection.retried(lambda budget: self._connection.unary("ListTables", pb.ListTablesRequest(), budget))
        return self._table in listed.tables

    def _first_table(self, budget: RetryBudget) -> Any:
        """Every server describes this table, be it there or not."""
        return self._connection.unary("Describe", pb.DescribeRequest(table=DEFAULT_TABLE), budget)

    def _open(self, *arguments: Any) -> None:
        super()._open(*arguments)
        self._named = NamedBatches(self._connection, self._table, self._transfer, self._sharing)

    def move(self, address: str) -> None:
        """Goes on with the server at another address. What waits for an answer is asked again there, or sent again under the numbers that it had.

        Raises:
            ForkedError, ClosedError: no calls can be made any more.
        """
        self._connection.move(address)

    def close(self) -> None:
        super().close()
        self._named.close()

    def _made_transfer(self) -> DeviceTransfer:
        return ColumnTransfer()

    def answer(self) -> pb.DescribeResponse:
        """What the server says of the table now."""
        return cast("pb.DescribeResponse", self._connection.retried(self._answer))

    def totals(self, *, uniform: bool = False, view: TableView | None = None, counted: bool = False) -> Totals:
        """Of what the table would draw a batch now; see `totals_now`."""
        return self.totals_now(uniform=uniform, view=view, counted=counted).totals

    def totals_now(self, *, uniform: bool = False, view: TableView | None = None, counted: bool = False) -> TotalsNow:
        """Of what the table would draw a batch now, its generation, and how many rows it has.

        Args:
            uniform: Whether all rows are equally probable.
            view: Whose anchors are drawn; None: any rows.
            counted: Whether a row counts as often as it can still be drawn, where rows leave.

        Raises:
            UnimplementedError: the server is of an older version, which does not say it.
        """
        around = None if view is None else window_query_to_message(view.windows)
        request = pb.DescribeRequest(table=self._table, wants_totals=True, sampler=Uniform.name if uniform else "", windows=around)
        answer = self._connection.retried(lambda budget: self._connection.unary("Describe", request, budget))
        if not answer.HasField("totals"):
            raise UnimplementedError(f"server {self.address} is of an older version, which cannot be a shard")
        found = Totals(answer.available, float(answer.available)) if counted else Totals.of(answer.totals)
        return TotalsNow(found, answer.generation_id, answer.size)

    def begin(self, one: OneBatch) -> BegunBatch | None:
        """Asks for a random batch where a call is open for it, and waits for nothing. None: there is none. What it gives is a `ShardBatch`.

        Args:
            one: What it is to be, as in `drawn`.
        """
        budget = RetryBudget(self._connection.timeout)
        return self._named.begin(one._replace(seconds=min(one.seconds, budget.server_wait)), budget)

    def drawn(self, one: OneBatch) -> ShardBatch:
        """A random batch, drawn now. Once such a batch was asked for, a call is held open for the next ones.

        Args:
            one: What it is to be. A rate limiter, and rows that leave, are never waited for longer than the table's `timeout`.

        Raises:
            EmptyTableError, RateLimitedError: there is no row, or none may be drawn.
        """
        return self._drawn_in_time(one, self._drawn_now)

    def leased(self, one: OneBatch) -> LeasedRows:
        """A random batch, as `drawn` gives it, whose rows are leased: they count as drawn once that is said. It comes over a call of its own."""

        def attempt(one: OneBatch, budget: RetryBudget) -> LeasedRows:
            return LeasedRows(self._connection, self._table, self._transfer, self._sharing, one, budget)

        return self._drawn_in_time(one, attempt)

    def _drawn_in_time(self, one: OneBatch, draw: Callable[[OneBatch, RetryBudget], T]) -> T:
        def attempt(budget: RetryBudget) -> T | RateLimitedError:
            limited = one.seconds < budget.server_wait
            try:
                return draw(one._replace(seconds=min(one.seconds, budget.server_wait)), budget)
            except RateLimitedError as error:  # Else it would be tried again as long as `timeout`.
                if not limited:
                    raise
                return error

        found = self._connection.retried(attempt)
        if isinstance(found, RateLimitedError):
            raise found
        return found

    def _drawn_now(self, one: OneBatch, budget: RetryBudget) -> ShardBatch:
        batch = cast("ShardBatch | None", self._named.take(one, budget))
        if batch is None:
            batch = cast("ShardBatch", self._random_batch(one.kind._replace(rows=one.rows), one.draw, False, budget, one.seconds))
            self._named.came_alone(one.kind, totals=batch.totals is not None)
        return batch

    @property
    def wants_shared(self) -> bool:
        """Whether memory is to be shared with the server, as far as is known."""
        return self._sharing.wanted

    def placed(self, rows: int, memory: BatchMemory, *, fields: tuple[str, ...] | None, uniform: bool) -> PlacedCall | None:
        """A call over which the server draws rows when it is asked to, and writes them to batches of so many rows in this memory.

        None: it does not, because it is on another host, say, or of an older version.

        Raises:
            EmptyTableError: there is no row.
        """
        sampler = Uniform.name if uniform else ""
        query = pb.SampleRequest(table=self._table, batch_size=rows, fields=fields, sampler=sampler, knows_priorities=True, wants_totals=True)
        call = self._connection.retried(lambda budget: PlacedCall(self._connection, query, memory, budget))
        return call if call.accepted else None

    def look(self, seconds: float, *, create: bool) -> pb.DescribeResponse:
        """What the server says of the table, if it answers within so many seconds. It is asked once.

        Args:
            seconds: How long its answer may take.
            create: Whether the table is created, where it is not there and its capacity is known.

        Raises:
            ServerUnavailableError, DeadlineError: it does not answer.
            TableNotFoundError: the table is not there.
        """
        budget = RetryBudget(seconds)
        if create and self._request.buffer_size is not None:
            self._agree(budget)
        answer = cast("pb.DescribeResponse", self._answer(budget))
        self._noted(answer)  # So the first insert does not ask a shard for it that was lost since.
        return answer

    @property
    def is_connected_for_inserts(self) -> bool:
        """Whether a call for inserts is open to the server. Where it is not, the server may be lost, or has no room for it."""
        return self._inserts.is_open

    def leaving_writer(
        self, known_schema: WriterSchema, gives_up: Callable[[float], bool], flush_rows: int, flush_seconds: float, max_in_flight: int
    ) -> LeavingWriter:
        """A writer that does not wait for a server that is given up; see `LeavingWriter`."""
        self._learn_config()
        settings = (known_schema, flush_rows, flush_seconds, max_in_flight)
        return LeavingWriter(self._connection, self._table, self._sharing, self._unacknowledged, *settings, gives_up)

    def rows_in_slots(self, slots: Slots, fields: tuple[str, ...] | None, view: TableView | None, *, priorities: bool) -> ShardBatch:
        """The rows in these slots; with a view, their windows. Errors: as `sample_by_index_fields`."""
        return cast("ShardBatch", self._by_slots(slots, fields, view, priorities=priorities))

    def all_rows(self, progress: Progress | None) -> ShardBatch:
        """Every stored row. Errors: as `sample_all`."""
        return cast("ShardBatch", self.sample_all(progress=progress))

    def episode_rows(self, episode_id: int) -> tuple[ShardBatch, bool]:
        """The rows of an episode, and whether the last one is the final observation. Errors: as `episode`."""
        rows, has_final = self._episode_rows(episode_id)
        return cast("ShardBatch", rows), has_final

    def rewind(self, metadata: Metadata) -> None:
        """Goes back to where `metadata` was saved. Errors: as `load`."""
        self._rewind(metadata)

    def epoch_rows(self, row_ids: npt.NDArray[np.int64], window: ShardWindow, query: EpochQuery) -> EpochAnswer:
        """Those of these rows of a window that come in an epoch with these arguments, in this order, and what becomes of the others.

        Raises:
            TableChangedError: the table is of another generation.
            RowIdError: a row is not of the window.
            TokenError: the table cannot have had such a window.
        """
        request = pb.SampleByIndexRequest(
            table=self._table,
            row_ids=row_ids.tolist(),
            fields=query.fields,
            windows=None if query.windows is None else window_query_to_message(query.windows),
            generation_id=window.generation_id,
            epoch=pb.EpochRows(first_row_id=window.first_row_id, end_row_id=window.end_row_id, replace=query.on_overwrite == "replace"),
        )
        while True:
            try:
                return self._connection.retried(partial(self._epoch_answer, request))
            except OverwrittenError:  # Between the server's look and its reading: what comes now?
                continue

    def _epoch_answer(self, request: pb.SampleByIndexRequest, budget: RetryBudget) -> EpochAnswer:
        answers, heads, asked = self._connection.stream("SampleByIndex", request, budget), list[Any](), len(request.row_ids)
        try:
            found = assemble(answers, pb.SampleByIndexResponse, self._transfer, range(1, asked + 1), without_batch=heads.append)
            batch = next((cast("ShardBatch", pending.take()) for pending in found), None)
        finally:
            answers.close()
        head = heads[0] if batch is None and heads else batch and batch.head
        return EpochAnswer.of(head, batch, asked)
