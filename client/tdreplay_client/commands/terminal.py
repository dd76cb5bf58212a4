"""The terminal of a command that is used with keys: read one by one, and given back as it was, however the command ends."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from tdreplay.errors import FailedPreconditionError

__all__ = ["Keyboard", "check_terminal", "keyboard"]

KEYS = {"\x1b[A": "up", "\x1b[B": "down", "\x1b[5~": "page up", "\x1b[6~": "page down", "\x1bOA": "up", "\x1bOB": "down"}
"""What the keys send that are no letters."""
MOST_BYTES = 1024


def check_terminal(instead: str) -> None:
    """Passes where a screen can be drawn and keys can be read.

    Args:
        instead: what the user may call where it cannot.

    Raises:
        FailedPreconditionError: standard input or output is no terminal, or one that cannot move its cursor.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()) or os.environ.get("TERM", "dumb") in ("", "dumb", "unknown"):
        raise FailedPreconditionError(f"this draws on a terminal and reads its keys, and there is none: use {instead}")


class Keyboard:
    """Gives keys as they are pressed. Another thread, and a change of the terminal's size, may wake whoever waits for one."""

    def __init__(self) -> None:
        self._waking, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(self._waking, False)

    def wake(self, _signal: int = 0, _frame: FrameType | None = None) -> None:
        """Wakes `keys`. Any thread may call it, and a signal."""
        with suppress(BlockingIOError):  # It is full: `keys` will wake in any case.
            os.write(self._wake, b"!")

    def keys(self, seconds: float) -> list[str]:
        """The keys that were pressed: letters, or 'up', 'down', 'page up', 'page down'. Waits for so long at most, until a key or `wake`."""
        ready, _, _ = select.select([sys.stdin.fileno(), self._waking], [], [], seconds)
        with suppress(BlockingIOError):
            os.read(self._waking, MOST_BYTES)
        return _parted(os.read(sys.stdin.fileno(), MOST_BYTES).decode(errors="replace")) if sys.stdin.fileno() in ready else []

    def close(self) -> None:
        """Nobody wakes it any more."""
        os.close(self._waking)
        os.close(self._wake)


def _parted(text: str) -> list[str]:
    """What came from the terminal, as keys. Of an end of input, the key is 'q': nobody can press another one."""
    if not text:
        return ["q"]
    for sent, name in KEYS.items():
        if text.startswith(sent):
            return [name, *(_parted(text[len(sent) :]) if text[len(sent) :] else [])]
    return [text[0], *(_parted(text[1:]) if text[1:] else [])]


@contextmanager
def keyboard() -> Iterator[Keyboard]:
    """For ``with``: keys are read as they are pressed, and not shown. SIGTERM ends the block as an exit does, so that the terminal is given back."""
    file, made = sys.stdin.fileno(), Keyboard()
    before = termios.tcgetattr(file)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGWINCH, signal.SIGTERM)}
    try:
        tty.setcbreak(file)
        _without_stop(file)
        signal.signal(signal.SIGWINCH, made.wake)
        signal.signal(signal.SIGTERM, _exit)
        yield made
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        termios.tcsetattr(file, termios.TCSADRAIN, before)
        made.close()


def _without_stop(file: int) -> None:
    """Ctrl-Z does nothing: it would leave the screen to the shell as it is."""
    attributes = termios.tcgetattr(file)
    attributes[6][termios.VSUSP] = b"\0"
    termios.tcsetattr(file, termios.TCSADRAIN, attributes)


def _exit(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)
