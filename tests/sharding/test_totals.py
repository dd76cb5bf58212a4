"""What part of a batch each shard has, and how long what it reported is used. Nothing here asks a server."""

from __future__ import annotations

import time

import numpy as np
import pytest

from chi_square import deviation
from tdreplay_client.sharding.shard_batches import Totals
from tdreplay_client.sharding.totals import FRESH_SECONDS, DrawKind, KnownTotals, Shares

ALL, UNIFORM = DrawKind(), DrawKind(uniform=True)


@pytest.fixture
def known() -> KnownTotals:
    made = KnownTotals()
    for number, rows in enumerate((10, 100, 1000)):
        made.note(ALL, number, Totals(rows, float(rows)), time.monotonic())
    return made


def test_counts_come_in_proportion_to_the_masses():
    shares, generator = Shares([0, 1, 2], [Totals(10, 1.0), Totals(5, 4.0), Totals(1000, 5.0)]), np.random.default_rng(1)
    counts = sum(shares.counts(1000, generator) for _ in range(200))
    assert counts.sum() == 200_000
    assert abs(deviation(counts, np.array([0.1, 0.4, 0.5]))) < 5


def test_each_row_comes_once_at_most_where_rows_leave():
    shares = Shares([0, 1], [Totals(2, 2.0), Totals(3, 3.0)])
    assert shares.counts_once(5, np.random.default_rng(1)).tolist() == [2, 3]


def test_a_shard_without_rows_is_never_drawn_from():
    shares = Shares([0, 1], [Totals(0, 7.0), Totals(1, 1e-300)])
    assert shares.counts(100, np.random.default_rng(1)).tolist() == [0, 100]


def test_rows_of_which_none_has_mass_are_equally_probable():
    assert Shares([4, 9], [Totals(1, 0.0), Totals(3, 0.0)]).of == {4: 0.25, 9: 0.75}


def test_no_rows_make_no_shares():
    assert Shares([0], [Totals(0, 0.0)]).of == {0: 0.0}


def test_what_a_shard_reported_is_used_for_a_while(known):
    assert known.stale(ALL, [0, 1, 2]) == set()
    time.sleep(FRESH_SECONDS)
    assert known.stale(ALL, [0, 1, 2]) == {0, 1, 2}


def test_totals_are_those_of_one_kind_of_draw(known):
    assert known.stale(UNIFORM, [0, 1]) == {0, 1}
    assert known.shares(UNIFORM, [0, 1]).numbers == []


def test_own_changes_make_a_shard_stale_until_it_was_asked_after_them(known):
    asked = time.monotonic()
    known.changed(1)
    assert known.stale(ALL, [0, 1]) == {1}
    known.note(ALL, 1, Totals(5, 5.0), asked)
    assert known.stale(ALL, [0, 1]) == {1}, "it was asked before the change"
    known.note(ALL, 1, Totals(5, 5.0), time.monotonic())
    assert known.stale(ALL, [0, 1]) == set()


def test_an_answer_that_is_late_does_not_replace_a_newer_one(known):
    known.note(ALL, 0, Totals(1, 1.0), time.monotonic() - 1)
    assert known.shares(ALL, [0]).rows == 10


def test_what_is_forgotten_has_no_part(known):
    known.forget(2)
    assert known.shares(ALL, [0, 1, 2]).of == {0: 10 / 110, 1: 100 / 110}
    known.clear()
    assert known.shares(ALL, [0, 1, 2]).numbers == []


def test_kinds_without_end_are_not_kept(known):
    for steps in range(1000):
        known.note(DrawKind(windows=steps), 0, Totals(1, 1.0), time.monotonic())
    assert known.stale(ALL, [0]) == {0}
