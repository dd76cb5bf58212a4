"""A shard that came back without its table, in a buffer that does not go on without lost shards."""

from __future__ import annotations

import time
import weakref
from typing import Protocol

from tdreplay.errors import ServerUnavailableError, TableNotFoundError
from tdreplay_client.sharding.shard import Shard

__all__ = ["Tables", "await_table"]

PAUSE_SECONDS = 0.05
"""The pause between two looks whether the table is there again."""


class Tables(Protocol):
    """The shards of the buffer."""

    def check_open(self) -> None:
        """Passes where calls can be made."""

    def is_elsewhere(self, shard: Shard) -> bool:
        """Whether another shard has the table."""


def await_table(tables: weakref.ref[Tables], timeout: float, shard: Shard, error: TableNotFoundError) -> None:
    """Waits until a shard has its table again, which the buffer makes where it knows the capacity. Else somebody else may.

    Where no other shard has the table, it was dropped: then, or where this shard never had it, nothing is waited for.

    Args:
        tables: The buffer's shards.
        timeout: How long it is waited for, in seconds.
        shard: It counts as lost until it has its table.
        error: What it said.

    Raises:
        TableNotFoundError: it is `error`. The table was dropped, or this shard never had it.
        ServerUnavailableError: the time is over.
    """
    until = time.monotonic() + timeout
    while True:
        others = tables()
        if others is None or not shard.generation_id or not others.is_elsewhere(shard):
            raise error
        others.check_open()
        shard.lose(error)  # The buffer looks for it from now on.
        del others
        time.sleep(PAUSE_SECONDS)
        if shard.is_there:
            return
        if time.monotonic() >= until:
            text = (
                f"shard {shard.number} at {shard.place.address} came back without its table, and nobody made it again within {timeout:g} s: {error}"
            )
            raise ServerUnavailableError(text) from error
