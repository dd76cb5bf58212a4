"""The record that the crash tests judge by finds what can go wrong."""

from __future__ import annotations

import pytest
import torch
from numbered import Sightings, rows
from tensordict import TensorDict

STORED = {0: 6, 1: 4}


def table(order: list[tuple[int, int]], first: int = 0) -> TensorDict:
    """Rows (actor, number), under the row ids from `first` on."""
    found = torch.cat([rows(actor, number, 1) for actor, number in order])
    found["row_id"] = torch.arange(first, first + len(order))
    return found


RIGHT = [(0, 0), (1, 0), (1, 1), (0, 1), (0, 2), (1, 2), (0, 3), (0, 4), (1, 3), (0, 5)]


def judged(found: TensorDict, write_count: int = len(RIGHT)) -> list[str]:
    seen = Sightings()
    seen.note(found)
    return seen.faults(write_count, STORED)


def test_a_table_with_each_row_once_has_no_faults():
    assert judged(table(RIGHT)) == []


@pytest.mark.parametrize("unseen", range(1, len(RIGHT)))
def test_rows_that_were_overwritten_unseen_are_no_faults(unseen):
    assert judged(table(RIGHT)[unseen:]) == judged(table(RIGHT)[:-unseen]) == []


@pytest.mark.parametrize("lost", range(len(RIGHT)))
def test_a_lost_row_is_found(lost):
    assert judged(table(RIGHT[:lost] + RIGHT[lost + 1 :]), len(RIGHT) - 1)


@pytest.mark.parametrize("lost", range(8))
def test_a_row_is_found_that_another_one_took_the_place_of(lost):
    assert judged(table([*RIGHT[:lost], *RIGHT[lost + 1 :], (1, 4)]))


@pytest.mark.parametrize("twice", range(len(RIGHT)))
def test_a_row_that_is_there_twice_is_found(twice):
    assert judged(table(RIGHT[: twice + 1] + RIGHT[twice:]), len(RIGHT) + 1)


def test_rows_in_another_order_are_found():
    assert judged(table([RIGHT[3], *RIGHT[1:3], RIGHT[0], *RIGHT[4:]]))


@pytest.mark.parametrize("field", ["actor", "number", "image", "checksum"])
def test_a_torn_row_is_found(field):
    found = table(RIGHT)
    found[field][4] = found[field][8]
    assert "1 of 10 rows are torn" in judged(found)[0]


def test_a_row_id_that_stands_for_another_row_later_is_found():
    seen = Sightings()
    seen.note(table(RIGHT))
    seen.note(table(RIGHT[5:6], first=4))
    assert "row 4 is number 2 of actor 1, and was number 2 of actor 0" in seen.faults(len(RIGHT), STORED)
