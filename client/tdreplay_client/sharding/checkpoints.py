"""Checkpoints of a buffer over several shards, and the file that says which of them belong together."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tdreplay.api import Checkpoint
from tdreplay.errors import InvalidArgumentError
from tdreplay.limits import shown
from tdreplay.progress import Progress
from tdreplay_client.sharding.lookups import reported
from tdreplay_client.sharding.shard import Shard
from tdreplay_client.sharding.shard_set import ShardSet

__all__ = ["ShardCheckpoint", "ShardedCheckpoint", "checkpoint_shards"]

FORMAT = 1


@dataclass(frozen=True)
class ShardCheckpoint:
    """The checkpoint of one shard.

    Attributes:
        number: Of the shard in its cluster.
        address: Where its server listens.
        checkpoint: What it wrote; the path is one of its machine.
    """

    number: int
    address: str
    checkpoint: Checkpoint


@dataclass(frozen=True)
class ShardedCheckpoint(Checkpoint):
    """A finished checkpoint of all shards, on their disks. Each shows one moment of its shard, and all were begun at once.

    `rows`, `write_count` and `bytes` are sums, and `path` is that of the manifest; where none was written, it is that of the first shard.

    Attributes:
        shards: Each shard's, by number.
    """

    shards: tuple[ShardCheckpoint, ...] = ()

    def write(self, path: str | os.PathLike[str], table: str, name: str) -> None:
        """Writes the manifest: one JSON object, whole or not at all. Makes missing folders.

        Args:
            path: Of the file.
            table: The table's name.
            name: The checkpoint's.
        """
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            scratch.write_text(json.dumps({"format": FORMAT, "table": table, "name": name, **self.to_json()}, indent=1) + "\n")
            scratch.replace(target)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        shards = [{"number": one.number, "address": one.address, **asdict(one.checkpoint)} for one in self.shards]
        return {"rows": self.rows, "bytes": self.bytes, "shards": shards}


def checkpoint_shards(shards: ShardSet, name: str, progress: Progress | None, manifest: str | os.PathLike[str] | None) -> ShardedCheckpoint:
    """A checkpoint of that name on each shard, all at once.

    Raises:
        InvalidArgumentError: `manifest` cannot be the path of a file. No shard was asked.
        ServerUnavailableError: a shard is lost, also where the buffer goes on without it: its rows would be missing. Those of the others stay.
    """
    if manifest is not None:
        _check_manifest(manifest)
    there = shards.everywhere

    def write(shard: Shard, told: Progress | None) -> Checkpoint:
        return shard.writes.checkpoint(name, progress=told)

    found = _whole(there, reported(shards, write, there, progress), manifest)
    if manifest is not None:
        found.write(manifest, there[0].writes.table, name)
    return found


def _check_manifest(manifest: str | os.PathLike[str]) -> None:
    """Passes where a file can have this path.

    Raises:
        InvalidArgumentError: it is no path, or one of a folder, or below a file.
    """
    path = os.fspath(manifest) if isinstance(manifest, str | os.PathLike) else None
    if not isinstance(path, str) or not Path(path).name or "\0" in path:
        raise InvalidArgumentError(f"manifest ({shown(manifest)}) must be the path of a file")
    if os.path.isdir(path):
        raise InvalidArgumentError(f"manifest ({shown(manifest)}) must be the path of a file, and is that of a folder")
    above = next(folder for folder in Path(path).absolute().parents if folder.exists())
    if not above.is_dir():
        raise InvalidArgumentError(f"manifest ({shown(manifest)}) must be the path of a file in a folder: {above} is none")


def _whole(shards: Sequence[Shard], written: Sequence[Checkpoint], manifest: str | os.PathLike[str] | None) -> ShardedCheckpoint:
    sums = {name: sum(getattr(one, name) for one in written) for name in ("rows", "write_count", "bytes")}
    parts = tuple(ShardCheckpoint(shard.number, shard.place.address, one) for shard, one in zip(shards, written, strict=True))
    return ShardedCheckpoint(path=written[0].path if manifest is None else os.fspath(manifest), **sums, shards=parts)
