"""The rows of an epoch over shards that one of these has, asked for by their ids."""

from __future__ import annotations

import logging
import threading
import time

import numpy as np

from tdreplay.errors import ServerUnavailableError, TableChangedError, TableNotFoundError
from tdreplay.selecting import Slots
from tdreplay_client.sharding.epoch_answers import LOST, OVERWRITTEN, EpochAnswer
from tdreplay_client.sharding.epoch_plan import ShardedPlan, ShardWindow
from tdreplay_client.sharding.shard import Shard
from tdreplay_client.sharding.shard_set import ShardSet

__all__ = ["PAUSE_SECONDS", "WindowRows"]

log = logging.getLogger("tdreplay")
PAUSE_SECONDS = 0.1
"""The pause between two looks whether a lost shard is back."""


class WindowRows:
    """The rows of a window, of its shard. One thread may use it at a time, or several.

    Where the buffer goes on without lost shards (`patience`), rows of a shard whose table is another one by now, or that is lost for longer than
    that since this was made, are gone for good.

    Args:
        shards: The buffer's shards.
        plan: Which rows come.
        window: Those of this shard.
        patience: For how many seconds a lost shard is waited for; None: as long as its table waits, and then it is an error.
        closed: Set when nobody waits any more.
    """

    def __init__(self, shards: ShardSet, plan: ShardedPlan, window: ShardWindow, patience: float | None, closed: threading.Event) -> None:
        self.window, self._shards, self._plan, self._patience, self._closed = window, shards, plan, patience, closed
        self._since = time.monotonic()
        self.oldest = 0  # The oldest row that the shard had when it was last asked.
        self.is_gone = False  # The shard's table is another one by now.

    @property
    def has_none_left(self) -> bool:
        """Whether all rows were overwritten."""
        return self.oldest >= self.window.end_row_id

    @property
    def is_given_up(self) -> bool:
        """Whether the shard is lost for longer than it is waited for."""
        shard = self._shard()[1]
        return self._patience is not None and shard is not None and shard.is_lost_for(self._patience, self._since)

    def at(self, ids: Slots) -> tuple[EpochAnswer, int]:
        """What the shard says of some rows, and its place among the shards.

        Raises:
            TableChangedError: its table is another one by now.
            ServerUnavailableError: it is lost.
        """
        if self._plan.query.on_overwrite == "skip" and len(ids) and int(ids.max()) < self.oldest:
            return EpochAnswer(np.full(len(ids), OVERWRITTEN, np.uint8), None, self.oldest), 0
        while not self.is_gone and not self._closed.is_set():
            place, shard = self._shard()
            if shard is not None and self._patience is not None and not shard.is_there:  # The buffer asks it whether it is back.
                if shard.is_lost_for(self._patience, self._since):
                    break
                self._closed.wait(PAUSE_SECONDS)
                continue
            try:
                return self._asked(shard, ids), place
            except (TableChangedError, TableNotFoundError) as error:
                self._note_gone(error)
            except ServerUnavailableError:
                if self._patience is None:
                    raise
        return EpochAnswer(np.full(len(ids), LOST, np.uint8), None, self.oldest), 0

    def _shard(self) -> tuple[int, Shard | None]:
        """The place of the shard among those of the buffer, and the shard; None: the buffer does not have it any more."""
        return next(((place, one) for place, one in enumerate(self._shards.now) if one.number == self.window.shard), (0, None))

    def _asked(self, shard: Shard | None, ids: Slots) -> EpochAnswer:
        if shard is None:
            raise TableChangedError(f"shard {self.window.shard} is no shard of the buffer any more")
        answer = shard.asked(lambda table: table.epoch_rows(ids, self.window, self._plan.query))
        self.oldest = max(self.oldest, answer.oldest)
        return answer

    def _note_gone(self, error: TableChangedError | TableNotFoundError) -> None:
        """Notes that the rows do not come any more.

        Raises:
            TableChangedError: the buffer does not go on without them.
        """
        if self._patience is None:
            raise TableChangedError(f"shard {self.window.shard}: {error}") from None
        if not self.is_gone:
            log.warning("the rows of shard %d that epochs did not read yet are lost: %s", self.window.shard, error)
        self.is_gone = True
