"""The page of ``tdreplay status``: the server, its tables, who waits, who is connected, which limits are near."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from tdreplay.command import one_line
from tdreplay.shard_words import shard_words
from tdreplay_client.commands.looks import Look, samples_per_insert
from tdreplay_client.commands.texts import amount, duration, percent, ratio, share, size

if TYPE_CHECKING:
    from tdreplay.server_status import ConnectedClient, Limit, ServerStatus
    from tdreplay.table_description import TableDescription

__all__ = ["BAD", "DIM", "GAP", "HEAD", "MOST_CLIENTS", "cut", "grid", "is_near", "near_lines", "open_calls", "page", "server_lines", "wait_lines"]

MOST_CLIENTS = 50
"""Clients of a page. ``--json`` has all of them."""
NEAR = 0.8
"""From which share of a limit on it is shown."""
LOW_DISK = 0.05
"""Below which free share of the disk that is marked."""
DIM, BAD, HEAD = "dim", "bold red", "bold"
GAP, LEAST_WIDTH = "  ", 8


def page(look: Look, width: int) -> list[Text]:
    """All of a look that people want to see, in lines of at most so many columns, but for long sentences."""
    lines = [*server_lines(look), Text(), *_tables(look.tables, width)]
    for title, section in (("WAITING", wait_lines(look.tables)), ("LIMITS NEAR THEIR END", near_lines(look.server.limits))):
        lines += [Text(), Text(title, HEAD), *section] if section else []
    return [*lines, Text(), *_clients(look.server.clients, width)]


# -- the server -------------------------------------------------------------------------------------------------------------------------------


def server_lines(look: Look) -> list[Text]:
    """Three lines: who the server is, what it has, and how it serves."""
    server = look.server
    clients, tables = len(server.clients), len(look.tables)
    words = shard_words(server.cluster, server.shard)
    shard = f"   {one_line(words)}" if words else ""
    return [
        Text(f"{one_line(look.address)}   tdreplay {one_line(server.version)}   up {duration(server.uptime_seconds)}{shard}", HEAD),
        _memory(server).append("   ").append_text(_disk(server)),
        Text(f"durability {server.durability}   {_access(server)}   {_some(clients, 'client')}   {_some(tables, 'table')}"),
    ]


def _memory(server: ServerStatus) -> Text:
    budget = f" (budget {size(server.memory_budget_bytes)} beside the rows)" if server.memory_budget_bytes else ""
    return Text(f"memory {size(server.memory_bytes) if server.memory_bytes >= 0 else 'unknown'}{budget}")


def _disk(server: ServerStatus) -> Text:
    if server.disk_bytes < 0:
        return Text("no data directory")
    low = share(server.disk_free_bytes, server.disk_bytes) < LOW_DISK
    return Text(f"disk {size(server.disk_free_bytes)} free of {size(server.disk_bytes)}", BAD if low else "")


def _access(server: ServerStatus) -> str:
    return f"{'TLS' if server.tls else 'no TLS'}   {'asks for names' if server.authenticated else 'asks nobody for a name'}"


def _some(count: int, name: str) -> str:
    return f"{count} {name}{'' if count == 1 else 's'}"


# -- the tables -------------------------------------------------------------------------------------------------------------------------------


def _tables(tables: Sequence[TableDescription], width: int) -> list[Text]:
    return grid(("TABLE", ">FILL", ">ROWS", ">CAPACITY", ">INSERTS/s", ">SAMPLES/s", ">RATIO"), list(map(_row, tables)), width)


def _row(table: TableDescription) -> list[str]:
    rates = (amount(table.insert_rate), amount(table.sample_rate), ratio(samples_per_insert(table)))
    return [table.config.name, percent(share(table.size, table.buffer_size)), str(table.size), str(table.buffer_size), *rates]


def grid(titles: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[Text]:
    """The rows below their titles, in columns. Columns of numbers have titles that begin with ``>``. The widest of the others is cut to the width."""
    names, cells = [title.lstrip(">") for title in titles], [[one_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    texts = [number for number, title in enumerate(titles) if not title.startswith(">")]
    while sum(widths) + len(GAP) * (len(widths) - 1) > width and max(widths[number] for number in texts) > LEAST_WIDTH:
        widths[max(texts, key=widths.__getitem__)] -= 1
    lines = [GAP.join(map(_cell, row, titles, widths)).rstrip() for row in (names, *cells)]
    return [Text(lines[0], HEAD), *map(Text, lines[1:])]


def _cell(text: str, title: str, width: int) -> str:
    """The text in exactly so many columns, unless it is a number that needs more."""
    return text.rjust(width) if title.startswith(">") else cut(text, width)


def cut(text: str, width: int) -> str:
    """The text in exactly so many columns; one that was longer ends with ``~``."""
    return text.ljust(width) if len(text) <= width else text[: width - 1] + "~"


def wait_lines(tables: Sequence[TableDescription]) -> list[Text]:
    """A line for each side of a table in which calls wait: how many, and what the one that waits longest waits for."""
    return [line for table in tables for line in _waits_of(table)]


def _waits_of(table: TableDescription) -> Iterator[Text]:
    for side, waits in (("inserts", table.inserts), ("samples", table.samples)):
        if waits.waiting:
            reason = f": {one_line(waits.waits_for)}" if waits.waits_for else ""
            yield Text(f"{one_line(table.config.name)}: {waits.waiting} {side} waiting{reason}")


# -- limits and clients -----------------------------------------------------------------------------------------------------------------------


def is_near(limit: Limit) -> bool:
    """Whether most of a limit is used, or something was refused because of it."""
    return limit.refused > 0 or share(limit.used, limit.limit) >= NEAR


def near_lines(limits: Sequence[Limit]) -> list[Text]:
    """A line for each limit that is near its end, or refused something."""
    return [Text(_limit(limit), BAD if share(limit.used, limit.limit) >= NEAR else "") for limit in limits if is_near(limit)]


def _limit(limit: Limit) -> str:
    used = "" if limit.used < 0 else f"{limit.used} of "
    return f"{one_line(limit.name)}: {used}{limit.limit}{f', {limit.refused} refused since the start' if limit.refused else ''}"


def _clients(clients: Sequence[ConnectedClient], width: int) -> list[Text]:
    shown = sorted(clients, key=_busiest)[:MOST_CLIENTS]
    lines = grid(("CLIENT", "NAME", "ROLES", "OPEN", ">SENT", ">GOT", ">FOR"), list(map(_client, shown)), width)
    more = len(clients) - len(shown)
    return [*lines, Text(f"and {more} more clients: --json has all of them", DIM)] if more else lines


def _client(client: ConnectedClient) -> list[str]:
    traffic = (size(client.bytes_received), size(client.bytes_sent), duration(client.connected_seconds))
    return [client.peer, client.name or "-", "+".join(client.roles), open_calls(client) or "-", *traffic]


def _busiest(client: ConnectedClient) -> tuple[int, int]:
    return -sum(client.open_calls.values()), -client.bytes_received - client.bytes_sent


def open_calls(client: ConnectedClient) -> str:
    """The calls that a client has open, in one text: ``AddBatch, 2 Sample``."""
    return ", ".join(f"{count} {name}" if count > 1 else name for name, count in client.open_calls.items())
