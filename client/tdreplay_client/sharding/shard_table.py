"""The table of one shard."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from tdreplay.epochs import EpochQuery
from tdreplay.errors import OverwrittenError, UnimplementedError
from tdreplay.samplers import Uniform
from tdreplay.table_config import TableRequest
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay.views import TableView
from tdreplay.window_messages import window_query_to_message
from tdreplay_client.buffer import RemoteReplayBuffer
from tdreplay_client.reading.assembly import assemble
from tdreplay_client.reading.device_transfer import DeviceTransfer
from tdreplay_client.sharding.epoch_answers import EpochAnswer
from tdreplay_client.sharding.epoch_plan import ShardWindow
from tdreplay_client.sharding.shard_batches import ColumnTransfer, ShardBatch, Totals
from tdreplay_client.transport.access import Access
from tdreplay_client.transport.retry_budget import RetryBudget

__all__ = ["ShardTable"]


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
        self._connection.retried(self._agree)
        return self.answer()

    def _made_transfer(self) -> DeviceTransfer:
        return ColumnTransfer()

    def answer(self) -> pb.DescribeResponse:
        """What the server says of the table now."""
        return cast("pb.DescribeResponse", self._connection.retried(self._answer))

    def totals(self, *, uniform: bool = False, view: TableView | None = None) -> Totals:
        """Of what the table would draw a batch now.

        Raises:
            UnimplementedError: the server is of an older version, which does not say it.
        """
        windows = None if view is None else window_query_to_message(view.windows)
        sampler = Uniform.name if uniform else ""
        request = pb.DescribeRequest(table=self._table, wants_totals=True, sampler=sampler, windows=windows)
        answer = self._connection.retried(lambda budget: self._connection.unary("Describe", request, budget))
        if not answer.HasField("totals"):
            raise UnimplementedError(f"server {self.address} is of an older version, which cannot be a shard")
        return Totals.of(answer.totals)

    def rows_by_id(
        self, row_ids: npt.NDArray[np.int64], fields: tuple[str, ...] | None, view: TableView | None, generation_id: str = ""
    ) -> ShardBatch | None:
        """Those of these rows that are stored, in this order; with a view, those that are anchors. None: none is.

        Raises:
            TableChangedError: the table is of another generation.
            RowIdError: an id was never given.
        """
        windows = None if view is None else window_query_to_message(view.windows)
        request = pb.SampleByIndexRequest(table=self._table, row_ids=row_ids.tolist(), fields=fields, windows=windows, generation_id=generation_id)
        return self._connection.retried(partial(self._stored, request))

    def epoch_rows(self, row_ids: npt.NDArray[np.int64], window: ShardWindow, query: EpochQuery) -> EpochAnswer:
        """Those of these rows of a window that come in an epoch with these arguments, in this order, and what becomes of the others.

        Raises:
            TableChangedError: the table is of another generation.
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

    def _stored(self, request: pb.SampleByIndexRequest, budget: RetryBudget) -> ShardBatch | None:
        answers = self._connection.stream("SampleByIndex", request, budget)
        try:
            sizes = range(1, len(request.row_ids) + 1)
            found = next(assemble(answers, pb.SampleByIndexResponse, self._transfer, sizes), None)
            return None if found is None else cast("ShardBatch", found.take())
        finally:
            answers.close()
