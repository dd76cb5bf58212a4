"""The checks of numbers at the edge: what is a number there, and how what is none is refused."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from tdreplay.errors import InvalidArgumentError
from tdreplay.limits import MAX_SECONDS, check_flag, check_seconds, check_whole, shown

SECONDS = [30, 30.0, np.float32(30), np.int8(30), np.array(30.0), torch.tensor(30), torch.tensor(30.0), Decimal(30), Fraction(60, 2)]
ENDLESS = [None, float("inf"), np.inf, 1e10, 1e300, 10**400, MAX_SECONDS * 2]
NO_SECONDS = [0, -1, 0.0, float("nan"), -float("inf"), -(10**400), True, np.True_, "30", b"30", 1j, np.complex64(1), [30], np.array([30.0]), {30}]
WHOLE = [7, np.int8(7), np.uint64(7), np.array(7), torch.tensor(7), torch.tensor(7, dtype=torch.uint8)]
NOT_WHOLE = [0, -1, 2**63, 2**70, -(2**63), 10**5000, 7.0, torch.tensor(7.0), np.float32(7), True, np.True_, torch.tensor(True), "7", None, [7]]
NOT_WHOLE += [np.array([7]), torch.tensor([7, 7]), torch.tensor(7, device="meta"), np.uint64(2**63)]


@pytest.mark.parametrize("value", SECONDS, ids=repr)
def test_seconds_may_be_any_number(value):
    found = check_seconds(value, "timeout")
    assert (type(found), found) == (float, 30.0)


@pytest.mark.parametrize("value", ENDLESS, ids=shown)
def test_seconds_without_end_are_a_year(value):
    assert check_seconds(value, "timeout") == MAX_SECONDS == 31_536_000.0


@pytest.mark.parametrize("value", NO_SECONDS, ids=shown)
def test_what_is_no_number_above_0_is_no_seconds(value):
    with pytest.raises(InvalidArgumentError, match=r"^timeout \(.*\) must be a number of seconds above 0"):
        check_seconds(value, "timeout")


@pytest.mark.parametrize("value", WHOLE, ids=repr)
def test_a_whole_number_may_come_from_numpy_or_torch(value):
    found = check_whole(value, "n_epochs", 1)
    assert (type(found), found) == (int, 7)


@pytest.mark.parametrize("value", NOT_WHOLE, ids=shown)
def test_what_is_no_whole_number_in_the_range_is_refused(value):
    with pytest.raises(InvalidArgumentError, match=r"^n_epochs \(.*\) must be a whole number from 1"):
        check_whole(value, "n_epochs", 1)


@pytest.mark.parametrize("value", [True, np.True_, torch.tensor(True)], ids=repr)
def test_a_flag_may_come_from_numpy_or_torch(value):
    assert check_flag(value, "shuffle") is True


@pytest.mark.parametrize("value", [1, 0, "False", None, torch.tensor([True, False])], ids=repr)
def test_what_is_neither_true_nor_false_is_no_flag(value):
    with pytest.raises(InvalidArgumentError, match=r"shuffle .* must be True or False"):
        check_flag(value, "shuffle")


def test_an_error_shows_no_more_than_a_line_of_a_value():
    assert shown("x" * 1000) == "'" + "x" * 76 + "..."
    assert "digits" in shown(10**5000)
