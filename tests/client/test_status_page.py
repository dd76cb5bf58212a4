"""The texts of ``tdreplay status`` and ``tdreplay top``: what stands on a page and a screen, at any width and height."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch

from tdreplay.rate_limiters import MinSize
from tdreplay.server_status import ConnectedClient, Limit, ServerStatus
from tdreplay.table_config import TableConfig
from tdreplay.table_description import TableDescription, Waits
from tdreplay_client.commands.looks import Look, samples_per_insert
from tdreplay_client.commands.status_page import MOST_CLIENTS, grid, page
from tdreplay_client.commands.texts import amount, duration, percent, ratio, share, size
from tdreplay_client.commands.top_history import ORDERS, SPAN_SECONDS, View
from tdreplay_client.commands.top_screen import ASCII, bar, screen, sparkline

WIDTHS = [20, 40, 60, 80, 132, 400]


def table(name: str, size: int = 50, **known: object) -> TableDescription:
    config = TableConfig(100, name=name, rate_limiter=MinSize(10))
    return TableDescription(100, size, size % 100, size, torch.device("cpu"), None, "process", size, config=config, **known)


def client(port: int, **known: object) -> ConnectedClient:
    return ConnectedClient(peer=f"127.0.0.1:{port}", roles=("actor",), **known)


def look(tables: list[TableDescription], taken: float = 0.0, **server: object) -> Look:
    return Look("127.0.0.1:50051", taken, ServerStatus(version="1.2.3", **server), tuple(tables))


def texts(lines: list[object]) -> list[str]:
    return [str(line).rstrip() for line in lines]


# -- numbers ----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.254, "0.254"),
        (999, "999"),
        (999.7, "1k"),
        (1000, "1k"),
        (12_345, "12.3k"),
        (999_600, "1M"),
        (4_560_000, "4.56M"),
        (1e15, "1000T"),
    ],
)
def test_an_amount_has_three_digits(value, text):
    assert amount(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (999, "999 B"), (1000, "0.977 KiB"), (1 << 20, "1 MiB"), (412 << 20, "412 MiB"), (1000 << 20, "0.977 GiB")]
)
def test_a_size_is_in_binary_units(value, text):
    assert size(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.9, "0 s"), (59, "59 s"), (60, "1 min 0 s"), (3599, "59 min 59 s"), (11_520, "3 h 12 min"), (200_000, "2 d 7 h")]
)
def test_a_duration_is_in_its_two_largest_units(value, text):
    assert duration(value) == text


def test_a_share_is_full_only_where_nothing_is_missing():
    assert [percent(share(part, 1000)) for part in (0, 5, 999, 1000, 2000)] == ["0%", "0%", "99%", "100%", "100%"]
    assert share(1, 0) == share(-1, 5) == 0.0
    assert [bar(value, 4, ASCII) for value in (0, 0.001, 0.5, 0.999, 1)] == ["....", "#...", "##..", "###.", "####"]


def test_a_ratio_is_samples_per_insert_and_none_while_nothing_is_inserted():
    assert ratio(samples_per_insert(table("a", insert_rate=4.0, sample_rate=10.0))) == "2.5"
    assert ratio(samples_per_insert(table("a", sample_rate=10.0))) == "-"


# -- the page of status -----------------------------------------------------------------------------------------------------------------------


def test_a_page_says_the_server_its_tables_its_clients_and_who_waits():
    waits = Waits(2, 5.0, "sampling needs 10 rows, 3 are there")
    limits = (Limit(name="max_streams", limit=10, used=9), Limit(name="max_tables", limit=10, used=1), Limit(name="max_workers", limit=9, refused=4))
    seen = client(5000, name="sam", open_calls={"AddBatch": 1, "Sample": 2}, bytes_received=2048, bytes_sent=10, connected_seconds=61)
    has = {"memory_bytes": 1 << 20, "memory_budget_bytes": 2 << 30, "clients": (seen,), "limits": limits}
    found = look([table("one", 3, samples=waits), table("two", 100)], **has)
    assert texts(page(found, 80)) == [
        "127.0.0.1:50051   tdreplay 1.2.3   up 0 s",
        "memory 1 MiB (budget 2 GiB beside the rows)   no data directory",
        "durability none   no TLS   asks nobody for a name   1 client   2 tables",
        "",
        "TABLE  FILL  ROWS  CAPACITY  INSERTS/s  SAMPLES/s  RATIO",
        "one      3%     3       100          0          0      -",
        "two    100%   100       100          0          0      -",
        "",
        "WAITING",
        "one: 2 samples waiting: sampling needs 10 rows, 3 are there",
        "",
        "LIMITS NEAR THEIR END",
        "max_streams: 9 of 10",
        "max_workers: 9, 4 refused since the start",
        "",
        "CLIENT          NAME  ROLES  OPEN                 SENT   GOT        FOR",
        "127.0.0.1:5000  sam   actor  AddBatch, 2 Sample  2 KiB  10 B  1 min 1 s",
    ]


def test_a_page_without_tables_and_clients_is_one_all_the_same():
    assert texts(page(look([]), 80))[3:] == [
        "",
        "TABLE  FILL  ROWS  CAPACITY  INSERTS/s  SAMPLES/s  RATIO",
        "",
        "CLIENT  NAME  ROLES  OPEN  SENT  GOT  FOR",
    ]


def test_of_very_many_clients_the_busiest_are_shown():
    clients = tuple(client(port, open_calls={"AddBatch": port}) for port in range(1, 4097))
    lines = texts(page(look([], clients=clients), 80))
    assert lines[-1] == f"and {4096 - MOST_CLIENTS} more clients: --json has all of them"
    assert "127.0.0.1:4096" in lines[-1 - MOST_CLIENTS]


def test_a_disk_that_is_nearly_full_is_marked():
    low, fine = (look([], disk_free_bytes=free, disk_bytes=100) for free in (4, 6))
    assert [any("red" in str(span.style) for span in page(found, 80)[1].spans) for found in (low, fine)] == [True, False]


def test_what_a_server_says_does_not_act_on_the_terminal_and_is_no_markup():
    seen = client(5000, name="\x1b[2J[red]x", open_calls={"A\nd": 1})
    lines = texts(page(look([], clients=(seen,)), 80))
    assert "[2J[red]x" in lines[-1]
    assert all(text.isprintable() for text in lines)


@pytest.mark.parametrize("width", WIDTHS)
def test_columns_fit_the_width_and_numbers_stay_whole(width):
    rows = [["a" * 64, "12345678", "b" * 40], ["c", "9", "d"]]
    lines = texts(grid(("NAME", ">NUMBER", "OPEN"), rows, width))
    assert all("12345678" in line for line in lines[1:2])
    assert max(map(len, lines)) <= max(width, 8 + 2 + 8 + 2 + 8)
    assert ("a" * 64 in lines[1]) is (width >= 64 + 2 + 8 + 2 + 40)


# -- the screen of top ------------------------------------------------------------------------------------------------------------------------


def busy_view(tables: int, clients: int, waiting: int = 0) -> View:
    """A view of so many tables, all of which did something, and of which some wait."""
    made = [table(f"replay-{number:02d}", number + 1, insert_rate=number, sample_rate=2.0 * number) for number in range(tables)]
    made = [replace(one, inserts=Waits(1, 1.0, "room")) if number < waiting else one for number, one in enumerate(made)]
    return View(look(made, 100.0, clients=tuple(client(5000 + port, open_calls={"Sample": 1}) for port in range(clients))))


@pytest.mark.parametrize(("tables", "clients", "waiting"), [(0, 0, 0), (1, 1, 0), (3, 40, 3), (50, 1, 50), (50, 300, 2)])
def test_a_screen_fits_any_terminal(tables, clients, waiting):
    view = busy_view(tables, clients, waiting)
    for width, height in itertools.product((20, 46, 80, 200), (1, 3, 5, 6, 8, 10, 24, 60)):
        lines = screen(view, width, height)
        assert len(lines) == height
        assert max(line.cell_len for line in lines) <= width
        assert lines[-1].plain.startswith("q quit")


@pytest.mark.parametrize(("tables", "clients", "waiting"), [(1, 1, 1), (3, 4, 2), (50, 5, 1)])
def test_a_screen_of_80_by_24_has_all_parts(tables, clients, waiting):
    lines = texts(screen(busy_view(tables, clients, waiting), 80, 24))
    assert any(line.startswith("replay-00") and "I" in line for line in lines)
    assert any(line.startswith("WAITING") for line in lines)
    assert any(line.startswith("127.0.0.1:5000") for line in lines)
    shown = sum(line.startswith("replay-") and "waiting" not in line for line in lines)
    assert shown == min(tables, shown) >= min(tables, 8)


def test_a_screen_scrolls_to_the_last_table_and_no_further():
    view = busy_view(50, 0)
    view.first = 1000
    lines = texts(screen(view, 80, 24))
    assert lines[-2].startswith("replay-49") or any(line.startswith("replay-49") for line in lines)
    assert view.first == 50 - sum(line.startswith("replay-") for line in lines)
    assert f"(tables {view.first + 1} to 50 of 50)" in lines[-1]


@pytest.mark.parametrize("order", ORDERS)
def test_tables_come_in_the_order_that_was_chosen(order):
    view = busy_view(5, 0, 2)
    while view.order != order:
        view.next_order()
    names = [one.config.name for one in view.tables()]
    assert names[0] == ("replay-00" if order in ("name", "waiting", "ratio") else "replay-04") or order == "ratio"
    view.reverse = True
    assert [one.config.name for one in view.tables()] == names[::-1]


def test_a_server_that_is_away_is_said_with_the_time_until_it_is_back():
    view = busy_view(1, 0)
    view.failed("not there", 0.0)
    view.failed("still not there", 50.0)
    assert view.away_since == 0.0
    assert any("away since" in line and "still not there" in line for line in texts(screen(view, 80, 24)))
    view.came(look([table("one")], 101.0))
    assert not any("away" in line for line in texts(screen(view, 80, 24)))


def test_a_sparkline_has_the_latest_at_its_right_and_the_largest_at_its_top():
    step = SPAN_SECONDS / 8
    moments, values = [1000 - step * age - 1 for age in range(7, -1, -1)], [0.0, 1, 2, 3, 4, 5, 6, 7]
    assert sparkline(moments, values, 1000.0, 8) == "▁▂▃▄▅▆▇█"
    assert sparkline(moments[4:], values[4:], 1000.0, 8, ASCII) == "    +*%#"
    assert sparkline([1000.0], [0.0], 1000.0, 4) == "   ▁"
    assert sparkline([], [], 1000.0, 4) == "    "


def test_only_the_last_minutes_are_remembered_and_only_of_tables_that_are_there():
    view = View(look([table("a", insert_rate=1.0), table("b")], 0.0))
    for second in range(1, 400):
        view.came(look([table("a", insert_rate=second)], float(second)))
    assert [view.points("a")[0].moment, view.points("a")[-1].inserts] == [399 - SPAN_SECONDS, 399.0]
    assert len(view.points("b")) == 0


def test_the_traffic_of_a_client_is_what_came_between_two_looks():
    view = View(look([], 10.0, clients=(client(1, bytes_received=100, bytes_sent=5),)))
    assert view.client_rates(view.look.server.clients[0]) == (0.0, 0.0)
    view.came(look([], 12.0, clients=(client(1, bytes_received=300, bytes_sent=5), client(2, bytes_sent=7))))
    assert [view.client_rates(one) for one in view.look.server.clients] == [(100.0, 0.0), (0.0, 0.0)]
    view.came(look([], 13.0, clients=(client(1),)))  # The server was started anew.
    assert view.client_rates(view.look.server.clients[0]) == (0.0, 0.0)
    assert not math.isnan(view.client_rates(client(1))[0])
