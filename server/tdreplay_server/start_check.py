"""What only the start of a server would find: files, directories, certificates, addresses, and tables that are there with other settings."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import NamedTuple

import torch

from tdreplay.errors import DirectoryInUseError, InvalidArgumentError, OtherSettingsError, ReplayError, ServerUnavailableError
from tdreplay.limits import DEFAULT_TABLE
from tdreplay.table_config import TableConfig, TableRequest
from tdreplay_server.access.tokens_file import read_tokens
from tdreplay_server.config import ServerConfig
from tdreplay_server.durability.data_directory import TABLES
from tdreplay_server.durability.shard_mark import agreed
from tdreplay_server.durability.table_directory import read_table
from tdreplay_server.storage.device import check_device
from tdreplay_server.system.certificate_dates import validity
from tdreplay_server.system.directory_lock import DirectoryLock
from tdreplay_server.system.disk_errors import disk_errors
from tdreplay_server.system.private_files import check_directory
from tdreplay_server.tables.wanted import check_wanted
from tdreplay_server.transport.credentials import CertificateFiles
from tdreplay_server.transport.listening import check_folder, check_free, is_taken

__all__ = ["Finding", "start_findings"]

SOON = timedelta(days=14)
"""How long before a certificate expires that is said."""


class Finding(NamedTuple):
    """Something that the start would find.

    Attributes:
        place: the setting, and where in it.
        text: what is wrong.
        prevents: whether a server would not start, or nobody could use it. Else it is worth knowing.
    """

    place: tuple[str, ...]
    text: str
    prevents: bool = True


def start_findings(config: ServerConfig) -> Iterator[Finding]:
    """All that a start with these settings would find now. Nothing is made or changed, and the addresses are free again afterwards."""
    yield from _address_findings("address", config.address, insecure=config.insecure)
    if config.metrics_address is not None:
        yield from _address_findings("metrics_address", config.metrics_address, insecure=config.insecure)
    yield from _certificate_findings(config)
    yield from _token_findings(config.tokens_file)
    yield from _device_findings(config)
    yield from _directory_findings(config)


def _address_findings(setting: str, address: str, *, insecure: bool) -> Iterator[Finding]:
    try:
        check_free(address)
        check_folder(address, insecure=insecure)
    except ServerUnavailableError as error:
        yield Finding((setting,), str(error), prevents=not is_taken(address))


# -- certificates and tokens ------------------------------------------------------------------------------------------------------------------


def _certificate_findings(config: ServerConfig) -> Iterator[Finding]:
    if config.cert_file is None or config.key_file is None:
        return
    try:
        CertificateFiles(config.cert_file, config.key_file, config.trusted_ca_file).check()
    except InvalidArgumentError as error:
        yield Finding(("cert_file",), str(error))
        return
    for setting in ("cert_file", "trusted_ca_file"):
        path: Path | None = getattr(config, setting)
        if path is not None:
            yield from _date_findings(setting, path)


def _date_findings(setting: str, path: Path) -> Iterator[Finding]:
    now = datetime.now(timezone.utc)
    try:
        dates = validity(path.read_text(errors="replace"))
    except InvalidArgumentError as error:
        yield Finding((setting,), f"{path} {error}")
        return
    for first, last in dates:
        if last < now:
            yield Finding((setting,), f"{path} has expired on {last:%Y-%m-%d %H:%M} UTC: put a new certificate in its place")
        elif first > now:
            yield Finding((setting,), f"{path} is valid from {first:%Y-%m-%d %H:%M} UTC on only: is the clock of this host right?")
        elif last < now + SOON:
            yield Finding((setting,), f"{path} expires on {last:%Y-%m-%d %H:%M} UTC", prevents=False)


def _token_findings(path: Path | None) -> Iterator[Finding]:
    if path is None:
        return
    try:
        tokens = read_tokens(path)
    except InvalidArgumentError as error:
        yield Finding(("tokens_file",), str(error))
        return
    if not tokens.tokens:
        yield Finding(("tokens_file",), f"{path} has no token: nobody can call until 'tdreplay-server token create' makes one", prevents=False)


# -- directories ------------------------------------------------------------------------------------------------------------------------------


def _device_findings(config: ServerConfig) -> Iterator[Finding]:
    named: dict[tuple[str, ...], str] = {("storing_device",): config.storing_device}
    named |= {("tables", name, "storing_device"): table.storing_device or "cpu" for name, table in (config.tables or {}).items()}
    for place, device in named.items():
        try:
            check_device(torch.device(device))
        except InvalidArgumentError as error:
            yield Finding(place, str(error))


def _directory_findings(config: ServerConfig) -> Iterator[Finding]:
    path = config.data_dir
    if path is None:
        yield Finding(("data_dir",), "is not set: the rows end with the server", prevents=False)
        return
    reason = _unwritable(path)
    if reason:
        yield Finding(("data_dir",), f"{path} cannot be used: {reason}")
    elif path.exists():
        yield from _table_findings(path, config)


def _unwritable(path: Path) -> str:
    """Why a directory cannot be made or written to; '': it can."""
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not there.is_dir():
        return f"{there} is a file"
    return "" if os.access(there, os.R_OK | os.W_OK | os.X_OK) else f"user {os.geteuid()} may not write to {there}"


def _table_findings(path: Path, config: ServerConfig) -> Iterator[Finding]:
    with ExitStack() as held:
        try:
            with suppress(FileNotFoundError), disk_errors(str(path)):  # No server has used it yet.
                held.enter_context(DirectoryLock(path, reading=True))
            with disk_errors(str(path)):
                agreed(path, config.shard_name)
        except DirectoryInUseError as error:
            yield Finding(("data_dir",), f"{error}. Its tables are not looked at", prevents=False)
            return
        except ReplayError as error:
            yield Finding(("data_dir",), str(error))
            return
        found, broken = _read_tables(path)
    yield from (Finding(("data_dir",), text) for text in broken)
    for place, request in _wanted(config):
        try:
            check_wanted(path, found, (request,))
        except OtherSettingsError as error:
            yield Finding((*place, error.settings[0]) if place[0] == "tables" else place, str(error))


def _read_tables(path: Path) -> tuple[dict[str, TableConfig], list[str]]:
    """The tables of a data directory, and what is wrong with those that cannot be read."""
    found, broken = {}, []
    for table in sorted((path / TABLES).glob("[!.]*")):
        try:
            with disk_errors(str(table)):
                check_directory(table)
                found[table.name] = read_table(table, torn_end=True).settings.config
        except ReplayError as error:
            broken.append(str(error))
    return found, broken


def _wanted(config: ServerConfig) -> Iterator[tuple[tuple[str, ...], TableRequest]]:
    """The tables that the settings name, and where."""
    if config.buffer_size is not None:
        yield ("buffer_size",), TableRequest.of(config.buffer_size, name=DEFAULT_TABLE)
    yield from ((("tables", name), request) for name, request in (config.tables or {}).items())
