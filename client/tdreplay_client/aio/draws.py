"""Random batches whose call was cancelled after a thread began it."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from typing import Any

from tensordict import TensorDict

from tdreplay.errors import ReplayError
from tdreplay.rate_limiters import Unlimited
from tdreplay_client.aio.threads import Opening
from tdreplay_client.buffer import RemoteReplayBuffer

__all__ = ["Draw", "UnclaimedDraws"]

MOST = 64
"""Batches that wait for another call at most: the oldest ones are forgotten."""


class Draw:
    """A call of `sample_batch` in a thread.

    Attributes:
        asked: its arguments.
        future: of its batch; None where nobody waited for it any more, and the table does not count what is drawn: another one is as good then.
        unclaimed: whether nobody waits for it.
    """

    future: Future[TensorDict | None]

    def __init__(self, asked: tuple[Any, dict[str, Any]]) -> None:
        self.asked, self.unclaimed = asked, False

    def take(self, opening: Opening[RemoteReplayBuffer]) -> TensorDict | None:
        """Draws the batch, in a thread."""
        batch_size, options = self.asked
        buffer = opening.get()
        batch = buffer.sample_batch(batch_size, **options)
        return None if self.unclaimed and not _counts_draws(buffer) else batch


def _counts_draws(buffer: RemoteReplayBuffer) -> bool:
    """Whether rows leave when they were drawn, or a rate limiter counts what is drawn; True where the server does not say it."""
    try:
        config = buffer.describe().config
    except ReplayError:
        return True
    return config.max_times_sampled > 0 or config.rate_limiter.name != Unlimited.name


class UnclaimedDraws:
    """Draws for which nobody waits any more. The next call with the same arguments takes one up.

    So rows that may be drawn only once are not lost, and whoever asks again and again, with a short timeout, keeps one thread busy and not many.
    """

    def __init__(self) -> None:
        self._draws: deque[Draw] = deque(maxlen=MOST)

    def put(self, draw: Draw) -> None:
        """Keeps a draw that was cancelled, unless it never began."""
        draw.unclaimed = True
        if not draw.future.cancelled() and draw.asked[1].get("seed") is None:
            self._draws.append(draw)

    def take(self, asked: tuple[Any, dict[str, Any]]) -> Draw | None:
        """The oldest one with these arguments, if there is any."""
        for draw in tuple(self._draws):
            if draw.asked == asked:
                self._draws.remove(draw)
                draw.unclaimed = False
                if not draw.future.done() or (draw.future.exception() is None and draw.future.result() is not None):
                    return draw
        return None
