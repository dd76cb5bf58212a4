"""A command of ours on a terminal of its own: what it draws, what it is typed, and what it leaves behind."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from children import SECONDS, Command, command

PROGRAM = """
import fcntl, os, sys, termios
os.setsid()
tty = os.open(sys.argv[1], os.O_RDWR)
fcntl.ioctl(tty, termios.TIOCSCTTY, 0)
for number in range(3):
    os.dup2(tty, number)
sys.stdin, sys.stdout, sys.stderr = (open(number, mode, encoding="utf-8", closefd=False) for number, mode in enumerate("rww"))
sys.argv = ["tdreplay", *sys.argv[2:]]
from tdreplay_client.cli import main
main()
"""
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
HOME, LEFT = "\x1b[H", "\x1b[?1049l"


class Screen:
    """The terminal of a command that draws screen after screen, each from the top left corner on."""

    def __init__(self, running: Command, file: int, before: list[object]) -> None:
        self.running, self._file, self._before, self.written = running, file, before, ""

    def size(self, width: int, height: int) -> None:
        """Gives it so many columns and lines, and tells the command."""
        fcntl.ioctl(self._file, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def type(self, keys: str) -> None:
        """Presses keys."""
        os.write(self._file, keys.encode())

    def lines(self) -> list[str]:
        """The lines of the last screen after which another one began, without colours; none before that."""
        *whole, _unfinished = self.written.split(HOME)
        return [line.rstrip() for line in COLOURS.sub("", whole[-1]).replace("\r", "").split("\n")] if len(whole) > 1 else []

    def awaited(self, fits: Callable[[list[str]], bool]) -> list[str]:
        """The lines of a screen that fits, once there is one."""
        deadline = time.monotonic() + SECONDS
        while not self.lines() or not fits(self.lines()):
            assert time.monotonic() < deadline, "\n".join(self.lines())
            self._read(0.1)
        return self.lines()

    def having(self, text: str) -> list[str]:
        """The lines of a screen that has `text`, once there is one."""
        return self.awaited(lambda lines: any(text in line for line in lines))

    def _read(self, seconds: float) -> bool:
        if select.select([self._file], [], [], seconds)[0]:
            try:
                self.written += os.read(self._file, 1 << 16).decode(errors="replace")
            except OSError:  # Nobody has the other end any more.
                return False
        return True

    def ended(self) -> int:
        """The exit status of the command, once it ended. All that it wrote is in `written` then."""
        status = self.running.ended()
        while select.select([self._file], [], [], 0)[0] and self._read(0):
            pass
        return status

    def is_clean(self) -> bool:
        """Whether the terminal is as it was: its own screen, a cursor, and keys that are shown."""
        shown_again = "\x1b[?25h" in self.written[self.written.rfind("\x1b[?25l") :]
        return LEFT in self.written and shown_again and termios.tcgetattr(self._file) == self._before


@contextmanager
def on_terminal(scratch: Path, *arguments: str, width: int = 80, height: int = 24, **environment: str) -> Iterator[Screen]:
    """Runs ``tdreplay`` with these arguments on a terminal of that size."""
    file, terminal = pty.openpty()
    try:
        before = termios.tcgetattr(file)
        usual = {"TERM": "xterm-256color", "COLUMNS": "", "LINES": ""}
        fcntl.ioctl(file, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        with command(scratch, "-c", PROGRAM, os.ttyname(terminal), *arguments, **(usual | environment)) as running:
            yield Screen(running, file, before)
    finally:
        os.close(terminal)
        os.close(file)
