"""The tables of the server's settings: those that are there from the start."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from tdreplay.environment import nearest
from tdreplay.errors import InvalidArgumentError
from tdreplay.table_config import SETTINGS, TableRequest, check_limiter
from tdreplay_server.system.disk import check_name

__all__ = ["tables_of", "tables_to_json"]


def tables_of(given: object) -> Mapping[str, TableRequest] | None:
    """The tables of the setting `tables`.

    Args:
        given: The name of a table -> its settings, as TOML has them or as `TableRequest.of` takes them; or the same as a JSON text. None: no tables.

    Raises:
        pydantic.ValidationError: a name or a setting breaks its rule. Its place is the name of the table, and then that of the setting.
        ValueError: it is no mapping of mappings.
    """
    if given is None:
        return None
    found = _parsed(given) if isinstance(given, str) else given
    if not isinstance(found, Mapping):
        raise ValueError('must be names of tables with their settings: {"replay": {"buffer_size": 1000}}')
    return {str(name): _request(str(name), settings) for name, settings in found.items()}


def tables_to_json(tables: Mapping[str, TableRequest] | None) -> str | None:
    """The JSON text that `tables_of` takes."""
    return None if tables is None else json.dumps({name: request.to_json() for name, request in tables.items()})


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"must be JSON: {error}") from None


def _request(name: str, settings: object) -> TableRequest:
    """What is asked of one table."""
    if not isinstance(settings, Mapping):
        raise _refusal((name,), settings, "must be the settings of a table: buffer_size = 1000")
    _check((name,), name, check_name, name, "table")
    for setting, value in settings.items():
        _check((name, str(setting)), value, _check_setting, str(setting), value)
    request = TableRequest.of(**settings, name=name)
    _check((name,), dict(settings), _check_as_a_whole, request)
    return request


def _check_setting(setting: str, value: object) -> None:
    if setting not in SETTINGS:
        meant = nearest(setting, SETTINGS)
        raise InvalidArgumentError(f"is not a setting of a table: {f'{meant} is' if meant else 'these are: ' + ', '.join(SETTINGS)}")
    given: Any = {setting: value}
    TableRequest.of(**given)


def _check_as_a_whole(request: TableRequest) -> None:
    config = request.config("cpu")
    if request.rate_limiter is not None or request.trajectories:
        check_limiter(config)


def _check(place: tuple[str, ...], value: object, check: Callable[..., object], *arguments: object) -> None:
    """Calls `check`. What it says of a value gets the value's place."""
    try:
        check(*arguments)
    except InvalidArgumentError as error:
        raise _refusal(place, value, str(error)) from None


def _refusal(place: tuple[str, ...], value: object, reason: str) -> ValidationError:
    problem = InitErrorDetails(type=PydanticCustomError("table", "{reason}", {"reason": reason}), loc=place, input=value)
    return ValidationError.from_exception_data("tables", [problem])
