"""Rows by slot, with what only those need who look into a table."""

from __future__ import annotations

from collections.abc import Sequence

from tensordict import TensorDict

from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay_client.reading.assembly import only_batch
from tdreplay_client.reading.device_transfer import DeviceTransfer
from tdreplay_client.transport.connection import Connection

__all__ = ["rows_in_slots"]


def rows_in_slots(
    connection: Connection, table: str, slots: Sequence[int], fields: Sequence[str], transfer: DeviceTransfer, *, with_priorities: bool = False
) -> TensorDict:
    """The rows in these slots, in that order: a TensorDict of batch size [n, ...]. The call is made once: it waits for no server.

    Args:
        connection: to the server.
        table: the table's name.
        slots: each holds a live row.
        fields: the names of the fields; ``index`` and ``row_id`` come only if they are named.
        transfer: brings the rows to their device.
        with_priorities: they have one more field, ``priority`` (float64 of shape [n]): the priorities that they have now. An older server does not
            send it.

    Raises:
        SlotIndexError: a slot holds no live row.
        NoPrioritiesError: with_priorities, and the rows have none.
        FieldNotFoundError: there is no such field.
    """
    request = pb.SampleByIndexRequest(table=table, index=slots, fields=fields, with_priorities=with_priorities)
    answers = connection.stream("SampleByIndex", request)
    return only_batch(answers, pb.SampleByIndexResponse, transfer, range(len(slots), len(slots) + 1)).take()
