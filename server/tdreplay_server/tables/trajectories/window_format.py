"""What is read of the window of each anchor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tdreplay.errors import FieldNotFoundError, InvalidArgumentError
from tdreplay.fields import Field
from tdreplay.limits import MAX_MESSAGE_BYTES
from tdreplay.schema import Schema
from tdreplay.system_fields import SENT_FIELDS, STEP_KIND, SYSTEM_NAMES, WINDOW_FIELDS
from tdreplay.windows import Window, WindowQuery
from tdreplay_server.tables.selection import RowFormat

__all__ = ["WindowFormat", "WindowFormats", "window_format"]

STEP_BYTES = 64
"""What it takes to find a step of a window, in bytes at the least. A block is to have no more anchors than are found at once in a few megabytes."""

MOST_QUERIES = 64


class Part(NamedTuple):
    """A field of a window.

    Attributes:
        name: Its name in the batch.
        window: The steps that come.
        field: The field of one step.
        step: The bytes of one step, as a dtype.
    """

    name: str
    window: Window
    field: Field
    step: npt.DTypeLike


@dataclass(frozen=True)
class WindowFormat(RowFormat):
    """What is read of each anchor.

    Attributes:
        query: What was asked for.
        parts: The fields of the windows.
    """

    query: WindowQuery
    parts: tuple[Part, ...]

    @cached_property
    def row_bytes(self) -> int:
        """The bytes of one anchor's window, or of finding it, where that is more."""
        return max(sum(field.row_bytes for field in self.fields), self.longest * STEP_BYTES)

    @cached_property
    def longest(self) -> int:
        """The number of steps of the longest window."""
        return max(part.window.length for part in self.parts)

    @cached_property
    def parts_by_window(self) -> list[tuple[Window, list[Part]]]:
        """The parts, those of the same steps together."""
        found: dict[tuple[int, int, bool, bool], tuple[Window, list[Part]]] = {}
        for part in self.parts:
            window = part.window
            found.setdefault((window.first, window.last, window.at_horizon, window.repeat_first), (window, []))[1].append(part)
        return list(found.values())


@lru_cache(maxsize=128)
def window_format(schema: Schema, query: WindowQuery, fields: tuple[str, ...] | None) -> WindowFormat:
    """What a query of windows reads of rows of `schema`. It is made once for each kind that is in use.

    Args:
        schema: Of the rows.
        query: The windows.
        fields: The names of the fields that a window without a name brings, and of system fields; None: all of them.

    Raises:
        FieldNotFoundError: a field is not there.
        InvalidArgumentError: two windows have one name in the batch, or the windows of one anchor are too large for a message.
    """
    parts = tuple(
        Part(_name(window, field), window, field, np.dtype((np.void, field.row_bytes)))
        for window in query.windows
        for field in _fields(schema, query, window, fields)
    )
    names = [part.name for part in parts]
    twice = next((name for name in names if names.count(name) > 1 or name in SYSTEM_NAMES), None)
    if twice is not None:
        raise InvalidArgumentError(f"windows: {twice!r} would be in the batch twice; give one of them a prefix")
    if not parts:
        raise FieldNotFoundError("windows: none of the optional fields is there")
    system = [field for field in SENT_FIELDS if fields is None or field.name in fields]
    found = (*(Field(part.name, part.field.dtype, (part.window.length, *part.field.shape)) for part in parts), *system, *WINDOW_FIELDS)
    size = sum(field.row_bytes for field in found)
    if size > MAX_MESSAGE_BYTES - (1 << 20):
        raise InvalidArgumentError(
            f"the windows of a step ({size} bytes) must be at most {MAX_MESSAGE_BYTES - (1 << 20)} bytes, so that they fit a message"
        )
    return WindowFormat(found, (), (), query, parts)


class WindowFormats:
    """The formats of the queries that were made lately. Whoever asks with the same object again, as a stream does, gets the same one at once."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[WindowQuery, Schema, tuple[str, ...] | None, WindowFormat]] = {}

    def found(self, schema: Schema, query: WindowQuery, fields: tuple[str, ...] | None) -> WindowFormat:
        """As `window_format`."""
        known = self._found.get(id(query))
        if known is not None and known[0] is query and known[1] is schema and known[2] == fields:
            return known[3]
        if len(self._found) >= MOST_QUERIES:
            self._found = {}
        made = window_format(schema, query, fields)
        self._found[id(query)] = (query, schema, fields, made)  # It keeps the query, so no other one has its id.
        return made


def _name(window: Window, field: Field) -> str:
    return f"{window.prefix}.{field.name}" if window.prefix else field.name


def _fields(schema: Schema, query: WindowQuery, window: Window, names: Sequence[str] | None) -> Iterator[Field]:
    """The fields that a window brings."""
    if window.field:
        yield from _named(schema, query, window)
        return
    named = {field.name for other in query.windows if other.field and not other.prefix for field in _named(schema, query, other)}
    for field in schema.select(names):
        if field.name not in named and field.name not in SYSTEM_NAMES and field.name != STEP_KIND.name:
            yield field


def _named(schema: Schema, query: WindowQuery, window: Window) -> Iterator[Field]:
    """The fields that a window names, without those for which there is a window that names them more closely."""
    nearer = [f"{other.field}." for other in query.windows if other.prefix == window.prefix and other.field.startswith(f"{window.field}.")]
    try:
        found = schema.select((window.field,))
    except FieldNotFoundError:
        if not window.optional:
            raise
        return
    yield from (field for field in found if not f"{field.name}.".startswith(tuple(nearer)))
