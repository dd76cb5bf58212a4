"""How many rows a second come and go."""

from __future__ import annotations

import threading
import time

import pytest

from tdreplay_server.tables.rates import WINDOW_SECONDS, RowRate


def test_a_rate_is_the_rows_of_the_last_seconds_by_their_time(monkeypatch):
    now = 1000.25
    monkeypatch.setattr(time, "monotonic", lambda: now)
    rate = RowRate()
    for _ in range(40):
        rate.add(30)
        now += 0.5
    assert rate.total == 1200
    assert rate.now() == pytest.approx(60, rel=0.1)
    now += 5
    assert rate.now() == pytest.approx(30, rel=0.2)
    now += WINDOW_SECONDS
    assert rate.now() == 0


def test_rows_of_a_moment_ago_count_over_one_second_at_least():
    rate = RowRate()
    assert rate.now() == 0
    rate.add(5)
    assert 2 < rate.now() <= 5


def test_rows_that_several_threads_count_are_all_counted():
    rate = RowRate()
    threads = [threading.Thread(target=lambda: [rate.add(1) for _ in range(20_000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rate.total == 80_000
