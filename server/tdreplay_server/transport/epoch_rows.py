"""Rows of an epoch whose order a client knows: it goes over several tables, of which this server has one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tdreplay.epochs import EpochPlan, EpochQuery
from tdreplay.errors import InvalidArgumentError, RowIdError
from tdreplay.framing import frame
from tdreplay.limits import MAX_EPOCH_IDS, check_whole
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay.windows import WindowQuery
from tdreplay_server.tables.table import Table
from tdreplay_server.transport.encoding import Outgoing, messages

__all__ = ["epoch_rows"]


def epoch_rows(table: Table, request: Any, fields: tuple[str, ...] | None, windows: WindowQuery | None) -> Iterator[bytes]:
    """The answers to a SampleByIndexRequest with `epoch`: what comes at this moment.

    Raises:
        InvalidArgumentError: there are no row ids, or too many; or what is asked for does not go with them.
        TableChangedError: the table is of another generation.
        RowIdError: an id is not of the window.
        TokenError: the window cannot be.
        OverwrittenError: rows were overwritten between the moment and the reading; the client asks again.
    """
    if len(request.index):
        raise InvalidArgumentError(f"index ({len(request.index)} slots) and epoch: the rows of an epoch are named by their row_ids alone")
    if request.with_priorities:
        raise InvalidArgumentError("with_priorities: priorities do not come with the rows of an epoch")
    check_whole(len(request.row_ids), "the number of row_ids", 1, MAX_EPOCH_IDS)
    window, ids = range(request.epoch.first_row_id, request.epoch.end_row_id), np.array(request.row_ids, np.int64)
    outside = (ids < window.start) | (ids >= window.stop)
    if outside.any():
        raise RowIdError(f"row id {ids[outside.argmax()]} is not in the window [{window.start}, {window.stop}) of the epoch")
    query = EpochQuery(1, fields=fields, windows=windows, on_overwrite="replace" if request.epoch.replace else "skip")
    plan = EpochPlan.over(query, table.config.name, request.generation_id, window, 0, of_steps=table.has_trajectories)
    selection, looked = table.look_up(plan, ids)
    head: dict[str, Any] = {"oldest_row_id": looked.oldest, "outcomes": looked.outcomes.tobytes()}
    if not selection.rows:
        yield frame(pb.SampleByIndexResponse(**head), 0)[0]
        return
    yield from messages(table, Outgoing(selection, selection.rows, head), pb.SampleByIndexResponse)
