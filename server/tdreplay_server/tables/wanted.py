"""The tables that a server's settings name, against those that are there when it starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tdreplay.errors import OtherSettingsError
from tdreplay.table_config import TableConfig, TableRequest

__all__ = ["check_wanted"]


def check_wanted(data_dir: Path, found: Mapping[str, TableConfig], wanted: Sequence[TableRequest]) -> None:
    """Passes where each of the tables that are there is as it is wanted.

    Raises:
        OtherSettingsError: one is not.
    """
    for request in wanted:
        there = found.get(request.name)
        differing = [] if there is None else request.differing(there)
        if there is not None and differing:
            what = "; ".join(request.differences(there))
            error = OtherSettingsError(f"{data_dir} holds a table {request.name!r} with {what}: {_remedy(data_dir, request, differing)}")
            error.table, error.settings = request.name, tuple(differing)
            raise error


def _remedy(data_dir: Path, request: TableRequest, differing: Sequence[str]) -> str:
    if differing == ["buffer_size"]:
        command = f"tdreplay-server resize {data_dir} --table {request.name} --buffer-size {request.buffer_size}"
        return f"change the setting, or the table with: {command}"
    return f"change the settings, or start without them and drop the table with: tdreplay table drop {request.name}"
