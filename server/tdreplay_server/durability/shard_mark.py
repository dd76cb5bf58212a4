"""Which shard of which cluster a data directory is of: its file ``SHARD`` says so, so that its rows are served under no other name."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tdreplay.errors import CorruptDataError, FailedPreconditionError
from tdreplay.limits import MAX_INT64
from tdreplay.shard_words import shard_words
from tdreplay_server.system.private_files import read_file, sync, write_file

__all__ = ["NO_SHARD", "ShardName", "agreed", "read_mark", "write_mark"]

MARK, SCRATCH = "SHARD", ".SHARD.new"
VERSION = 1
"""Of the file. A directory without one, as older versions make it, is of no shard yet."""


@dataclass(frozen=True)
class ShardName:
    """Which shard a server is.

    Attributes:
        cluster: The name of its cluster; '': it was given none.
        number: Its number; None: it was given none.
    """

    cluster: str = ""
    number: int | None = None

    def __str__(self) -> str:
        return shard_words(self.cluster, self.number) or "no shard"


NO_SHARD = ShardName()


def agreed(data_dir: Path, given: ShardName) -> ShardName:
    """Which shard a server on this directory is that is started as `given`. What it was not given, the directory says.

    Raises:
        FailedPreconditionError: the directory is of another shard, or of another cluster, or a newer version wrote its mark.
        CorruptDataError: the mark is not what was written.
    """
    there = read_mark(data_dir)
    if (given.cluster and there.cluster not in ("", given.cluster)) or (given.number is not None and there.number not in (None, given.number)):
        raise FailedPreconditionError(
            f"{data_dir} is of {there}, and the server is started as {given}: start it on that shard's own directory, or as what the directory is of"
        )
    return ShardName(given.cluster or there.cluster, there.number if given.number is None else given.number)


def read_mark(data_dir: Path) -> ShardName:
    """What the mark of a directory says; of no shard where it has none. Errors: as `agreed`."""
    path = data_dir / MARK
    try:
        text = read_file(path)
    except FileNotFoundError:
        return NO_SHARD
    try:
        found = json.loads(text)
        version, cluster, number = found["version"], found.get("cluster", ""), found.get("shard")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise CorruptDataError(f"{path} is not what was written: {text[:80]!r}") from None
    if type(version) is int and version > VERSION:
        raise FailedPreconditionError(f"{path} was written by a newer version of tdreplay, in format {version}: this one knows {VERSION}")
    if version != VERSION or not isinstance(cluster, str) or not (number is None or (type(number) is int and 0 <= number <= MAX_INT64)):
        raise CorruptDataError(f"{path} is not what was written: {text[:80]!r}")
    return ShardName(cluster, number)


def write_mark(data_dir: Path, name: ShardName) -> None:
    """Marks a directory, on the disk, all at once. The caller has its lock."""
    if name == read_mark(data_dir):
        return
    scratch = data_dir / SCRATCH
    scratch.unlink(missing_ok=True)
    write_file(scratch, json.dumps({"version": VERSION, "cluster": name.cluster, "shard": name.number}).encode())
    sync(scratch)
    scratch.rename(data_dir / MARK)
    sync(data_dir)
