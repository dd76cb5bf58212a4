"""The screen of ``tdreplay top``: so many lines of text, of so many columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from rich.text import Text

from tdreplay.command import one_line
from tdreplay_client.commands.looks import samples_per_insert
from tdreplay_client.commands.status_page import BAD, DIM, GAP, HEAD, cut, near_lines, open_calls, server_lines, wait_lines
from tdreplay_client.commands.texts import amount, clock, percent, ratio, share, size
from tdreplay_client.commands.top_history import SPAN_SECONDS, View

if TYPE_CHECKING:
    from tdreplay.server_status import ConnectedClient
    from tdreplay.table_description import TableDescription

__all__ = ["ASCII", "BLOCKS", "Glyphs", "bar", "screen", "sparkline", "table_lines"]

FIXED_LINES = 5  # Three of the server, the titles of the tables, and the keys.
LEAST_NAME, LEAST_SPARK, MOST_SPARK, MOST_BAR = 10, 4, 60, 20
PEER = 21
FILL, INSERTS, SAMPLES = "blue", "green", "cyan"


class Glyphs(NamedTuple):
    """The characters of bars and sparklines, the lowest or emptiest first."""

    bar: str
    spark: str


BLOCKS = Glyphs("░█", "▁▂▃▄▅▆▇█")
ASCII = Glyphs(".#", "_.-=+*%#")
"""For terminals that show nothing else."""


def screen(view: View, width: int, height: int, glyphs: Glyphs = BLOCKS) -> list[Text]:
    """The lines of the screen, `height` of them at most, each of `width` columns at most."""
    notes, clients = _notes(view), sorted(view.look.server.clients, key=lambda client: _busiest(view, client))
    rows, noted, shown = _divided(height - FIXED_LINES, len(view.look.tables), len(notes), len(clients))
    lines = [*_server(view), *table_lines(view, width, rows, glyphs)]
    lines += _section("WAITING, LIMITS", notes, noted)
    lines += _section(_client_titles(width), [_client(view, client, width) for client in clients], shown)
    lines = [*lines[: height - 1], *(Text() for _ in range(height - 1 - len(lines))), _keys(view, rows)]
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return lines[-height:]


def table_lines(view: View, width: int, rows: int, glyphs: Glyphs) -> list[Text]:
    """The titles and so many of the tables, from the first that is not scrolled out of sight. It keeps the view from being scrolled too far."""
    tables = view.tables()
    view.first = max(0, min(view.first, len(tables) - rows))
    widths = _widths(width, max((len(table.config.name) for table in tables), default=0))
    return [_titles(widths), *(_table(view, table, widths, glyphs) for table in tables[view.first : view.first + rows])]


def _divided(lines: int, tables: int, notes: int, clients: int) -> tuple[int, int, int]:
    """How many lines tables, notes and clients get. Notes and clients have a title, and an empty line before it; without a line, they have none."""
    noted = min(notes, max(0, lines // 4 - 2))
    shown = min(clients, max(0, lines // 3 - 2))
    rows = max(0, lines - _taken(noted) - _taken(shown))
    spare = rows - tables
    if spare > 0:
        more = min(spare if noted else spare - 2, notes - noted)
        noted, spare = (noted + more, spare - more - (0 if noted else 2)) if more > 0 else (noted, spare)
        shown += max(0, min(spare if shown else spare - 2, clients - shown))
    return min(rows, tables), noted, shown


def _taken(lines: int) -> int:
    return lines + 2 if lines else 0


def _section(title: str, lines: Sequence[Text], shown: int) -> list[Text]:
    more = f"  ({len(lines) - shown} more)" if len(lines) > shown else ""
    return [Text(), Text(title, HEAD).append(more, DIM), *lines[:shown]] if shown else []


# -- the server -------------------------------------------------------------------------------------------------------------------------------


def _server(view: View) -> list[Text]:
    """Three lines. Where the server is away, the last one says so: what it would say is not true now."""
    lines = server_lines(view.look)
    if view.away_since is not None:
        lines[-1] = Text(f"away since {clock(view.away_since)}: {one_line(view.reason)}", BAD)
    return lines


def _notes(view: View) -> list[Text]:
    return [*wait_lines(view.look.tables), *near_lines(view.look.server.limits)]


def _keys(view: View, rows: int) -> Text:
    every = len(view.look.tables)
    part = f" (tables {view.first + 1} to {view.first + rows} of {every})" if 0 < rows < every else ""
    return Text(f"q quit   s sort: {view.order}   r {'reversed' if view.reverse else 'reverse'}   up/down scroll{part}", DIM)


# -- tables -----------------------------------------------------------------------------------------------------------------------------------


class _Widths(NamedTuple):
    name: int
    bar: int
    spark: int
    """0: there is no room for sparklines."""


def _widths(width: int, longest: int) -> _Widths:
    bar = max(4, min(MOST_BAR, width // 10))
    name = max(LEAST_NAME, min(longest, width // 5))
    rest = width - name - bar - 36  # The other columns, and what is between them.
    spark = min(MOST_SPARK, rest // 2)
    spark = spark if spark >= LEAST_SPARK else 0
    return _Widths(min(max(longest, LEAST_NAME), name + max(0, rest - 2 * spark)), bar, spark)


def _titles(widths: _Widths) -> Text:
    wide = widths.spark + 7 if widths.spark else 6
    rates = ("INSERTS/s", "SAMPLES/s") if wide > 8 else ("INS/s", "SMP/s")
    cells = ("TABLE".ljust(widths.name), "W ", "FILL".ljust(widths.bar + 5), *(title.ljust(wide) for title in rates), "RATIO")
    return Text(GAP.join(cells), HEAD)


def _table(view: View, table: TableDescription, widths: _Widths, glyphs: Glyphs) -> Text:
    filled, points = share(table.size, table.buffer_size), view.points(table.config.name)
    waits = ("I" if table.inserts.waiting else "") + ("S" if table.samples.waiting else "")
    line = Text(cut(one_line(table.config.name), widths.name), "yellow" if waits else "")
    line.append(GAP).append(waits.ljust(2), "bold yellow").append(GAP)
    line.append(bar(filled, widths.bar, glyphs), FILL).append(percent(filled).rjust(5))
    rates = [(table.insert_rate, [point.inserts for point in points], INSERTS), (table.sample_rate, [point.samples for point in points], SAMPLES)]
    moments = [point.moment for point in points]
    for rate, values, style in rates:
        line.append(GAP).append(amount(rate).rjust(6))
        if widths.spark:
            line.append(" ").append(sparkline(moments, values, view.look.taken, widths.spark, glyphs), style)
    return line.append(GAP).append(ratio(samples_per_insert(table)).rjust(5))


def bar(value: float, width: int, glyphs: Glyphs = BLOCKS) -> str:
    """A bar that is filled to a share of its width. It is empty only at 0, and full only at 1."""
    full = round(value * width)
    full = max(full, 1) if value > 0 else 0
    full = min(full, width - 1) if value < 1 else width
    return glyphs.bar[1] * full + glyphs.bar[0] * (width - full)


def sparkline(moments: Sequence[float], values: Sequence[float], now: float, width: int, glyphs: Glyphs = BLOCKS) -> str:
    """The values of the last `SPAN_SECONDS`, the latest at the right, each column the mean of its time. The largest is at the top, 0 at the bottom.

    A column from which there is no value is empty.
    """
    columns: list[list[float]] = [[] for _ in range(width)]
    for moment, value in zip(moments, values, strict=True):
        column = width - 1 - int((now - moment) / SPAN_SECONDS * width)
        if 0 <= column < width:
            columns[column].append(value)
    means = [sum(column) / len(column) if column else None for column in columns]
    most = max((mean for mean in means if mean is not None), default=0.0)
    return "".join(" " if mean is None else glyphs.spark[_level(mean, most, len(glyphs.spark))] for mean in means)


def _level(value: float, most: float, levels: int) -> int:
    return min(levels - 1, round(value / most * (levels - 1))) if most > 0 else 0


# -- clients ----------------------------------------------------------------------------------------------------------------------------------


def _busiest(view: View, client: ConnectedClient) -> tuple[float, float]:
    return -sum(view.client_rates(client)), -sum(client.open_calls.values())


def _client_titles(width: int) -> str:
    return GAP.join(("CLIENT".ljust(PEER), "SENT/s".rjust(8), "GOT/s".rjust(8), "WHO".ljust(_who(width)), "OPEN"))


def _client(view: View, client: ConnectedClient, width: int) -> Text:
    sent, got = view.client_rates(client)
    who = f"{client.name} ({'+'.join(client.roles)})" if client.name else "+".join(client.roles)
    cells = (cut(one_line(client.peer), PEER), size(round(sent)).rjust(8), size(round(got)).rjust(8), cut(one_line(who), _who(width)))
    return Text(GAP.join((*cells, one_line(open_calls(client)))))


def _who(width: int) -> int:
    return max(8, min(30, width // 6))
