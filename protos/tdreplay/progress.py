"""How far long work is: functions that are told of it, and a bar on the terminal."""

from __future__ import annotations

import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

from tdreplay.errors import InvalidArgumentError
from tdreplay.limits import shown

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

__all__ = ["Progress", "ProgressBar", "Shown", "reporting", "reports_to"]

Progress = Callable[[int, int], object]
"""Called with two numbers: what is done so far, and the total. They are rows, or bytes where the call says so."""

Shown: TypeAlias = "bool | Progress | None"
"""True draws a bar on standard error, where that is a terminal or a notebook; a function is told; None and False: progress is not shown."""

REFRESH_SECONDS = 0.1
"""The shortest time between two pictures of a bar."""


class ProgressBar:
    """A bar on standard error. It appears with the first report. It draws nothing where standard error is neither a terminal nor a notebook.

    Whoever draws it calls it from one thread, and closes it. One that nothing refers to any more gives the terminal back, too.

    Args:
        what: what is done, in a word or two.
        unit: what is counted: ``rows``, or ``bytes``, which are shown as kB, MB and so on.
    """

    def __init__(self, what: str, unit: str = "rows") -> None:
        self._what, self._unit = what, unit
        self._bar: RichProgress | None = None
        self._drawn = 0.0
        self._end: Callable[[], object] | None = None
        self._hidden = not (sys.stderr.isatty() or _in_a_notebook())

    def __call__(self, done: int, total: int) -> None:
        """Shows that so many of `total` are done."""
        now = time.monotonic()
        if self._hidden or (now - self._drawn < REFRESH_SECONDS and done < total):
            return
        bar = self._bar or self._begun()
        bar.update(bar.task_ids[0], completed=done, total=total)
        bar.refresh()
        self._drawn = now

    def _begun(self) -> RichProgress:
        self._bar = bar = _bar(self._unit)
        bar.add_task(self._what)
        bar.start()
        self._end = weakref.finalize(self, bar.stop)  # It hides the cursor meanwhile.
        return bar

    def close(self) -> None:
        """Leaves the bar as it is, and gives the terminal back. Closing twice is allowed. A later report begins another bar."""
        if self._end is not None:
            self._end()
        self._bar = self._end = None


def _bar(unit: str) -> RichProgress:
    # Here: rich takes a tenth of a second. Without a thread that draws, and without a hand on what the program prints itself.
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    counted = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), counted, TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), auto_refresh=False, redirect_stdout=False, redirect_stderr=False)


def _in_a_notebook() -> bool:
    """Whether this is the kernel of a notebook. IPython is asked only where something else has loaded it."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


def reports_to(progress: Shown, what: str, unit: str = "rows") -> Progress | None:
    """What is told how far the work is; None: nothing.

    Args:
        progress: how it is shown.
        what: what is done, in a word or two.
        unit: what is counted, as in `ProgressBar`.

    Raises:
        InvalidArgumentError: it is none of these.
    """
    if progress is None or progress is False:
        return None
    if progress is True:
        return ProgressBar(what, unit)
    if not callable(progress):
        raise InvalidArgumentError(
            f"progress ({shown(progress)}) must be True, False, None, or a function of two numbers: what is done, and the total"
        )
    return progress


@contextmanager
def reporting(progress: Shown, what: str, unit: str = "rows") -> Iterator[Progress | None]:
    """For ``with``: as `reports_to`. A bar is closed at the end."""
    told = reports_to(progress, what, unit)
    try:
        yield told
    finally:
        if isinstance(told, ProgressBar):
            told.close()
