"""The file that has a server's tokens: read whole, replaced whole, changed by one process at a time."""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from tdreplay.errors import InvalidArgumentError
from tdreplay_server.access.tokens import Tokens
from tdreplay_server.system.logs import log
from tdreplay_server.system.private_files import open_file, sync, write_file
from tdreplay_server.system.small_files import opened_at_once

__all__ = ["change_tokens", "read_tokens"]

MOST_BYTES = 16 << 20
"""The largest file that is read: some 50,000 tokens."""
OTHERS_WRITE, OTHERS_READ = stat.S_IWGRP | stat.S_IWOTH, stat.S_IROTH


def read_tokens(path: Path) -> Tokens:
    """The tokens that a file has. It may be a link, as in Kubernetes.

    Raises:
        InvalidArgumentError: it is not there, cannot be read, others may write to it, or it is not what `change_tokens` writes.
    """
    try:
        return Tokens.model_validate_json(_content(path))
    except ValidationError as error:
        problem = error.errors()[0]
        place = "".join(f"{part}: " for part in problem["loc"])
        raise InvalidArgumentError(f"tokens_file ({path}) is broken: {place}{problem['msg'].removeprefix('Value error, ')}") from None


def _content(path: Path) -> bytes:
    try:
        with opened_at_once(path) as file:
            _check_rights(path, os.fstat(file.fileno()))
            return file.read(MOST_BYTES)
    except FileNotFoundError:
        raise InvalidArgumentError(f"tokens_file ({path}) is not there: 'tdreplay-server token create --tokens-file {path}' makes it") from None
    except OSError as error:
        raise InvalidArgumentError(f"tokens_file ({path}) cannot be read: {error.strerror}") from None


def _check_rights(path: Path, found: os.stat_result) -> None:
    """Passes where nobody but the file's owner can make tokens. Who can read it learns names and roles, and no token."""
    if found.st_mode & OTHERS_WRITE:
        raise InvalidArgumentError(f"tokens_file ({path}): other users may write to it, and so make tokens: chmod 600 {path}")
    if found.st_uid not in (0, os.geteuid()) and os.geteuid():
        raise InvalidArgumentError(f"tokens_file ({path}) belongs to user {found.st_uid}, and must belong to user {os.geteuid()} or to root")
    if found.st_mode & OTHERS_READ:
        log.warning("all users can read the names and roles of tokens", tokens_file=str(path))


def change_tokens(path: Path, change: Callable[[Tokens], Tokens]) -> None:
    """Replaces the tokens that a file has by what `change` makes of them, all at once. Where there is no file, it makes one.

    Two processes that change it go one after the other. The file keeps its owner; only the owner can read it.

    Raises:
        InvalidArgumentError: as `read_tokens`; also where the file cannot be written.
    """
    target = path.resolve()
    try:
        lock = open_file(target.with_name(f".{target.name}.lock"), os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            _replace(target, change(read_tokens(target) if target.exists() else Tokens()))
        finally:
            os.close(lock)
    except OSError as error:
        raise InvalidArgumentError(f"tokens_file ({path}) cannot be written: {error.strerror}") from None


def _replace(target: Path, tokens: Tokens) -> None:
    scratch = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        write_file(scratch, f"{tokens.model_dump_json(indent=1)}\n".encode())
        if target.exists():
            with suppress(PermissionError):  # Root gives the file back to the server's user.
                os.chown(scratch, target.stat().st_uid, target.stat().st_gid)
        sync(scratch)
        scratch.rename(target)
        sync(target.parent)
    finally:
        scratch.unlink(missing_ok=True)
