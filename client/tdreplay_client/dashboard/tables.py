"""Rows and values of tables, as pages ask for them. Each read is bounded, and none changes anything."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from tensordict import TensorDict

from tdreplay.description_messages import description_from_message
from tdreplay.errors import InvalidArgumentError, SlotIndexError
from tdreplay.fields import Field
from tdreplay.system_fields import EPISODE_ID, PRIORITY, ROW_ID, STEP, STEP_KIND
from tdreplay.table_description import TableDescription
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay_client.dashboard.fields import column, field_named, has_column, inline, user_fields, values_to_json
from tdreplay_client.dashboard.limits import PAGE_BYTES, PAGE_ROWS, PAGE_VALUES, VALUE_BYTES
from tdreplay_client.dashboard.numbers import as_json, elements
from tdreplay_client.dashboard.pictures import layouts, pixels
from tdreplay_client.dashboard.png import png
from tdreplay_client.reading.device_transfer import DeviceTransfer
from tdreplay_client.reading.slots import rows_in_slots
from tdreplay_client.transport.connection import Connection

__all__ = ["RowReader", "row_ids", "step_fields"]

ATTEMPTS = 3
"""How often rows are looked for that leave while they are read."""

CALLS = 4
"""Reads of rows that are under way at a time."""


class RowReader:
    """Reads rows of the tables of a server. Its methods may be called from several threads.

    Args:
        connection: To the server.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection, self.transfer = connection, DeviceTransfer(torch.device("cpu"))
        self.running = threading.BoundedSemaphore(CALLS)

    def described(self, table: str) -> TableDescription:
        """What the server says of a table now."""
        return description_from_message(self.connection.unary("Describe", pb.DescribeRequest(table=table)), table)

    def in_slots(self, table: str, slots: Sequence[int], fields: Sequence[str], *, with_priorities: bool = False) -> TensorDict:
        """As `rows_in_slots`."""
        with self.running:
            return rows_in_slots(self.connection, table, slots, fields, self.transfer, with_priorities=with_priorities)

    def page(self, name: str, start: int | None, limit: int, *, newest_first: bool) -> dict[str, Any]:
        """A page of rows, by row id.

        Args:
            name: The table's name.
            start: The id of the first row of the page; rows follow towards the oldest or the newest. None, or an id that is not stored: it begins at
                the end from which rows are listed.
            limit: Rows of the page, from 1 to `PAGE_ROWS`.
            newest_first: Whether older rows follow; else newer ones.
        """
        if not 1 <= limit <= PAGE_ROWS:
            raise InvalidArgumentError(f"limit ({limit}) must be from 1 to {PAGE_ROWS}")
        for _ in range(ATTEMPTS):
            table = self.described(name)
            live = row_ids(table)
            try:
                rows = list(self._rows(table, _page_of(live, start, limit, newest_first)))
            except SlotIndexError as error:  # Rows left that had been drawn.
                lost = error
            else:
                return {"generation": table.generation_id, "oldest": live.start, "end": live.stop, "rows": rows}
        raise lost

    def _rows(self, table: TableDescription, ids: range) -> Iterator[dict[str, Any]]:
        if not ids:
            return
        chosen = inline(user_fields(table), PAGE_BYTES // len(ids))
        system = [ROW_ID.name, *step_fields(table)]
        batch = self.in_slots(
            table.config.name,
            [number % table.buffer_size for number in ids],
            [*system, *(field.name for field in chosen)],
            with_priorities=table.config.sampler.has_priorities,
        )
        drawn = [PRIORITY.name] if table.config.sampler.has_priorities and has_column(batch, PRIORITY.name) else []
        said = {key: _one_a_row(batch, key) for key in (*system, *drawn)}
        for at, (number, values) in enumerate(zip(ids, values_to_json(batch, chosen), strict=True)):
            if said[ROW_ID.name][at] == as_json(number):  # Else a newer row took its slot since the table was described.
                yield {
                    "slot": number % table.buffer_size,
                    **{key: listed[at] for key, listed in said.items()},
                    **_episode(said, at),
                    "values": values,
                }

    def value(self, name: str, field_name: str, row_id: int, start: int) -> dict[str, Any]:
        """Numbers of one value, at most `PAGE_VALUES` of them, from number `start` on, as they lie in memory."""
        field, value = self._value(name, field_name, row_id)
        flat = value.reshape(-1)
        part = elements(flat[start : start + PAGE_VALUES])
        return {"shape": list(field.shape), "total": flat.numel(), "start": start, "values": part}

    def picture(self, name: str, field_name: str, row_id: int, layout: str) -> bytes:
        """One value as a PNG file. `layout`: one of `LAYOUTS`; '': the likeliest."""
        field, value = self._value(name, field_name, row_id)
        possible = layouts(field)
        if not possible:
            raise InvalidArgumentError(f"field {field.name[:80]!r} ({field}) is no image")
        return png(pixels(value, layout or possible[0]))

    def _value(self, name: str, field_name: str, row_id: int) -> tuple[Field, torch.Tensor]:
        table = self.described(name)
        field = field_named(table, field_name)
        if field.row_bytes > VALUE_BYTES:
            raise InvalidArgumentError(f"a value of {field.row_bytes} bytes is not shown: the most is {VALUE_BYTES}")
        if row_id not in row_ids(table):
            raise SlotIndexError(f"row {row_id} is not stored")
        batch = self.in_slots(name, [row_id % table.buffer_size], [ROW_ID.name, field.name])
        if _one_a_row(batch, ROW_ID.name) != [as_json(row_id)]:
            raise SlotIndexError(f"row {row_id} is not stored any more")
        return field, column(batch, field.name)[0]


def row_ids(table: TableDescription) -> range:
    """The ids of the live rows."""
    return range(table.write_count - table.size, table.write_count)


def step_fields(table: TableDescription) -> list[str]:
    """The names of the system fields that say which step a row is."""
    return [EPISODE_ID.name, STEP.name, STEP_KIND.name] if table.config.trajectories else []


def _episode(said: dict[str, list[Any]], at: int) -> dict[str, str]:
    """The episode of a step, as a text: its number is a large one."""
    return {EPISODE_ID.name: str(said[EPISODE_ID.name][at])} if EPISODE_ID.name in said else {}


def _page_of(live: range, start: int | None, limit: int, newest_first: bool) -> range:
    """The ids of a page, in its order."""
    if newest_first:
        first = live.stop - 1 if start is None or start not in live else start
        return range(first, max(first - limit, live.start - 1), -1)
    first = live.start if start is None or start not in live else start
    return range(first, min(first + limit, live.stop))


def _one_a_row(batch: TensorDict, name: str) -> list[Any]:
    """The values of a system field: one a row, also where a row is a batch itself."""
    return elements(column(batch, name).reshape(batch.batch_size[0], -1)[:, 0])
