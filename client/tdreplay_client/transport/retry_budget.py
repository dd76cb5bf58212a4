"""How long a call waits for a server: to answer, or to come back."""

from __future__ import annotations

import random
import time

from tdreplay.errors import OverloadedError

__all__ = ["FIRST_PAUSE", "GRACE_SECONDS", "RetryBudget", "jittered"]

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
"""The pause in seconds between two attempts to reach a server: the first one, and the longest to which it grows."""

WAIT_MARGIN = 0.5
"""The seconds by which a server waits shorter than its client, so that its answer says what it waited for. At most a tenth of the client's time."""

GROWTH, MOST_GROWTH = 1.5, 8.0
"""By which factor a client waits longer each time that a server has too much to do, and the most by which it does."""

GRACE_SECONDS = 0.1
"""The grace after a deadline. The answer may have come in time while this process stood still: in a garbage collection, or because it was paused."""

_random = random.SystemRandom()  # Not the interpreter's generator: clients that seed that alike would still come together.


def jittered(seconds: float) -> float:
    """Half of `seconds`, and a random part of the other half, so that clients which lost their server at one moment do not come back at one moment.

    This is "equal jitter" of Brooker, Exponential Backoff And Jitter, AWS Architecture Blog, 2015.
    """
    return seconds / 2 + _random.uniform(0, seconds / 2)


class RetryBudget:
    """The time that a call has for all of its attempts. It starts anew with each answer of the server.

    Attributes:
        lost: how the connection was lost since the server last answered; empty where it was not.
        refused: the error with which the server said last that it has too much to do, since the time began; None: it did not.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._margin = seconds, min(WAIT_MARGIN, seconds / 10)
        self.lost = ""
        self.renew()

    def renew(self) -> None:
        """Starts the time anew."""
        self.until = time.monotonic() + self._seconds
        self._pause, self._growth = FIRST_PAUSE, 1.0
        self.refused: OverloadedError | None = None

    def answered(self) -> None:
        """Notes that the server answered, and starts the time anew."""
        self.lost = ""
        self.renew()

    @property
    def left(self) -> float:
        """Seconds that are left, at least 0."""
        return max(0.0, self.until - time.monotonic())

    @property
    def over(self) -> bool:
        """Whether there is no time left for another attempt."""
        return self.left < FIRST_PAUSE

    @property
    def server_wait(self) -> float:
        """Seconds that the server may wait for rows or for a rate limiter, at least 0, so that its answer comes before the time is over."""
        return max(0.0, self.left - self._margin)

    @property
    def outlasts_wait(self) -> bool:
        """Whether a server that waited as long as it might waited for less than this time: for a call that was opened before this time began."""
        return self.left > 2 * self._margin

    def has_time_for(self, retry_after: float) -> bool:
        """Whether there is time left for an attempt after so many seconds."""
        return self.left - self._margin > max(retry_after, FIRST_PAUSE)

    def overload_pause(self, retry_after: float) -> float:
        """Seconds to wait before the next attempt at a server that has too much to do, and says when to come again.

        They are not shorter than it says, grow, and differ from client to client: all that were refused at one moment would come back at one moment.
        The last attempt is made just before the time is over.
        """
        least = max(retry_after, FIRST_PAUSE) * self._growth
        self._growth = min(self._growth * GROWTH, MOST_GROWTH)
        return min(jittered(2 * least), max(0.0, self.left - self._margin))

    def pause(self) -> float:
        """Seconds to wait before the next attempt. They grow, differ from client to client, and leave time for it."""
        pause = min(jittered(self._pause), self.left / 2)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        return pause
