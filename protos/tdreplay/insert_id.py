"""What an insert is known by, at both ends."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["InsertId"]


class InsertId(NamedTuple):
    """The name of one block of rows. The server stores a block of one insert id once, however often it arrives.

    Attributes:
        writer_id: the writer that sent the block: a text that no other writer has.
        sequence: the number of the block among those of its writer, from 1 up.
    """

    writer_id: str
    sequence: int
