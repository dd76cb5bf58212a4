"""The error tree, and its two maps: to a gRPC status and back."""

from __future__ import annotations

import grpc
import pytest

from tdreplay import errors
from tdreplay.errors import ReplayError, error_class, from_status


def tree(cls: type[ReplayError]) -> list[type[ReplayError]]:
    return [cls, *(found for sub in cls.__subclasses__() for found in tree(sub))]


@pytest.mark.parametrize("cls", tree(ReplayError), ids=lambda cls: cls.__name__)
def test_every_error_survives_the_way_to_a_status_and_back(cls):
    assert isinstance(cls.code, grpc.StatusCode)
    raised = from_status(cls.code, cls.__name__, "the value and the rule")
    assert type(raised) is cls
    assert str(raised) == "the value and the rule"


@pytest.mark.parametrize("status", grpc.StatusCode)
def test_every_status_without_a_name_becomes_an_error(status):
    assert issubclass(error_class(status), ReplayError)


def test_a_status_stands_for_an_error_that_has_it():
    for status in grpc.StatusCode:
        cls = error_class(status)
        assert error_class(cls.code) is cls


@pytest.mark.parametrize("name", ["EmptyTableError", "NoSuchError", "", "ReplayError"])
def test_a_name_that_does_not_fit_the_status_is_not_believed(name):
    assert error_class(grpc.StatusCode.UNAVAILABLE, name) is errors.ServerUnavailableError


@pytest.mark.parametrize(
    ("cls", "builtin"),
    [
        (errors.InvalidArgumentError, ValueError),
        (errors.SlotIndexError, IndexError),
        (errors.FieldNotFoundError, KeyError),
        (errors.TableNotFoundError, LookupError),
        (errors.ServerUnavailableError, ConnectionError),
        (errors.DeadlineError, TimeoutError),
    ],
)
def test_errors_are_also_the_builtin_ones_that_code_catches(cls, builtin):
    assert issubclass(cls, builtin)


def test_every_public_error_is_exported():
    assert {cls.__name__ for cls in tree(ReplayError)} <= set(errors.__all__)
