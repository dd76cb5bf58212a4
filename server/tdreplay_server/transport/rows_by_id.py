"""Rows that are asked for by their ids, as the messages of an answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tdreplay.errors import OverwrittenError
from tdreplay.limits import BLOCK_BYTES
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay_server.tables.stored_rows import StoredRows
from tdreplay_server.tables.table import Table
from tdreplay_server.transport.encoding import block_message

__all__ = ["stored_messages"]


def stored_messages(table: Table, stored: StoredRows | None) -> Iterator[Any]:
    """The rows in messages, each with a block that is read when it is sent. Of no rows one message, without a block.

    Rows that are overwritten meanwhile are left out of the blocks that were not sent yet. Each message says how many rows come in all.
    """
    sent, most = 0, 0 if stored is None else -(-stored.left // max(1, -(-stored.row.row_bytes * stored.left // BLOCK_BYTES)))
    while stored is not None:
        part = stored.part(most)
        if not (part.rows.rows or sent):
            break
        head = pb.SampleByIndexResponse(batch_rows=sent + part.rows.rows + part.left, first_row=sent)
        try:
            message = block_message(table, part.rows, 0, part.rows.rows, head)  # Without a row, it says that no more come.
        except OverwrittenError:
            continue  # What is left of the part comes.
        yield message
        if not part.left:
            return
        stored.note_read(part.rows.rows)
        sent += part.rows.rows
    yield pb.SampleByIndexResponse()
