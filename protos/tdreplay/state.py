"""A buffer at one moment."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tdreplay.schema import Schema

__all__ = ["State"]


@dataclass(frozen=True)
class State:
    """A buffer at one moment.

    Attributes:
        buffer_size: capacity in rows.
        size: rows stored.
        pointer: slot of the next row.
        write_count: id of the next row. The stored rows are the ids ``[write_count - size, write_count)``. A `reset` makes it jump forward, and a
            `load` sets it back.
        storing_device: device of the stored rows.
        schema: fields of a row; None while no row was ever stored.
        durability: what acknowledged rows survive: none, process, interval or power.
        insert_count: rows ever inserted, each counted once.
    """

    buffer_size: int
    size: int
    pointer: int
    write_count: int
    storing_device: torch.device
    schema: Schema | None
    durability: str = "none"
    insert_count: int = 0
