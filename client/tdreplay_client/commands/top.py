"""The command ``tdreplay top``."""

from __future__ import annotations

import queue
import sys
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated

import typer

from tdreplay.errors import ClosedError, ReplayError
from tdreplay.limits import check_number
from tdreplay_client.commands.calls import connected
from tdreplay_client.commands.options import Address, Timeout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.live import Live

    from tdreplay_client.commands.looks import Look
    from tdreplay_client.commands.terminal import Keyboard
    from tdreplay_client.commands.top_history import View
    from tdreplay_client.transport.connection import Connection

__all__ = ["top"]

LEAST_SECONDS, MOST_SECONDS = 0.1, 3600.0
PAGE = 10
REDRAWN_SECONDS = 5.0
"""How long a screen stands where nothing happens."""


def top(
    interval: Annotated[float, typer.Option(metavar="SECONDS", help="How often the server is looked at.")] = 1.0,
    address: Address = "",
    timeout: Timeout = 30.0,
) -> None:
    """Show a server live: how full its tables are, how fast rows come and go, who waits for whom, and the clients.

    Curves show the last three minutes. W says which side of a table waits: I the inserts, S the samples; the lines below say for what. RATIO is how
    many rows were drawn for each that came, over the last ten seconds.

    Keys: q quits, s takes another order of the tables, r reverses it, up and down (or k and j) scroll. A server that goes away is waited for. Needs
    the role reader or admin, where the server asks for names.
    """
    pause = check_number(interval, "interval", LEAST_SECONDS, MOST_SECONDS)
    from tdreplay_client.commands.terminal import check_terminal, keyboard
    from tdreplay_client.commands.top_history import View

    check_terminal("tdreplay status --watch")
    with connected(address, timeout) as connection:
        from tdreplay_client.commands.looks import look

        view = View(look(connection, waits=True))
        with suppress(KeyboardInterrupt), keyboard() as keys, _looks(connection, pause, keys.wake) as found, _live() as live:
            _show(view, live, keys, found)


@contextmanager
def _looks(connection: Connection, pause: float, wake: Callable[[], None]) -> Iterator[queue.SimpleQueue[Look | ReplayError]]:
    """For ``with``: looks at the server, or why there is none, as they come: from a thread, so that keys are answered meanwhile."""
    found: queue.SimpleQueue[Look | ReplayError] = queue.SimpleQueue()
    stopped = threading.Event()
    thread = threading.Thread(target=_keep_looking, args=(connection, pause, stopped, found, wake), name="tdreplay-top", daemon=True)
    thread.start()
    try:
        yield found
    finally:
        stopped.set()
        connection.close()  # It ends a look that is on its way.
        thread.join()


def _keep_looking(
    connection: Connection, pause: float, stopped: threading.Event, found: queue.SimpleQueue[Look | ReplayError], wake: Callable[[], None]
) -> None:
    from tdreplay_client.commands.looks import look

    while not stopped.wait(pause):
        try:
            found.put(look(connection, waits=False))
        except ClosedError:
            return
        except ReplayError as error:
            found.put(error)
        wake()


def _live() -> Live:
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False, markup=False)
    return Live(console=console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)


def _show(view: View, live: Live, keys: Keyboard, found: queue.SimpleQueue[Look | ReplayError]) -> None:
    """Draws until somebody presses q."""
    while True:
        _draw(view, live)
        pressed = keys.keys(REDRAWN_SECONDS)
        _take_in(view, found)
        if "q" in pressed:
            return
        for key in pressed:
            _act(view, key)


def _take_in(view: View, found: queue.SimpleQueue[Look | ReplayError]) -> None:
    with suppress(queue.Empty):
        while True:
            came = found.get_nowait()
            if isinstance(came, ReplayError):
                view.failed(str(came), time.time())
            else:
                view.came(came)


def _act(view: View, key: str) -> None:
    if key == "s":
        view.next_order()
    elif key == "r":
        view.reverse = not view.reverse
    view.first = max(0, view.first + SCROLLS.get(key, 0))


SCROLLS = {"up": -1, "k": -1, "down": 1, "j": 1, "page up": -PAGE, "page down": PAGE, " ": PAGE}
"""By how many tables a key scrolls."""


def _draw(view: View, live: Live) -> None:
    from rich.text import Text

    from tdreplay_client.commands.top_screen import ASCII, BLOCKS, screen

    width, height = live.console.size
    glyphs = BLOCKS if sys.stdout.encoding.lower().startswith("utf") else ASCII
    live.update(Text("\n").join(screen(view, width, height, glyphs)), refresh=True)
