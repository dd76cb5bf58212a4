"""What the disk of a node keeps of a shard beside its rows, and where."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from tdreplay.errors import CorruptDataError, InvalidArgumentError

__all__ = ["ShardRecord", "cluster_directory", "records_under", "shard_directory"]

FILE = "shard.json"


@dataclass(frozen=True)
class ShardRecord:
    """What a shard has to know when it is started again.

    Attributes:
        number: Its number in the cluster.
        begun: When it was begun without rows, in seconds since 1970.
        next_number: The number of the next shard that the cluster gets, when this was written.
        port: Where its server listens; 0: it never did.
        starts: How often its server was ready.
        began_empty: As in `ShardStatus`.
        state: ``serving``, ``draining`` or ``leaving``.
        mode: What becomes of its rows when it leaves: ``move`` or ``drain``; '': it does not leave.
        leaves_at: When it leaves, in seconds since 1970.
        moved: Of each table, the id below which its rows are in other shards.
        moved_rows: How many these are, of all tables.
        targets: The numbers of these other shards, in order.
    """

    number: int
    begun: float
    next_number: int
    port: int = 0
    starts: int = 0
    began_empty: bool = False
    state: str = "serving"
    mode: str = ""
    leaves_at: float = 0.0
    moved: dict[str, int] = field(default_factory=dict)
    moved_rows: int = 0
    targets: tuple[int, ...] = ()

    @classmethod
    def read(cls, directory: Path) -> ShardRecord | None:
        """That of the shard in a directory; None: there is none.

        Raises:
            CorruptDataError: it is broken.
        """
        path = directory / FILE
        try:
            entries: Any = json.loads(path.read_text())
            return cls(**{each.name: entries[each.name] for each in fields(cls)} | {"targets": tuple(entries["targets"])})
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptDataError(f"{path} is broken: {error!r}") from None

    def write(self, directory: Path) -> None:
        """Replaces the one in a directory, as a whole or not at all."""
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = directory / f"{FILE}.new"
        with draft.open("w") as file:
            json.dump(asdict(self), file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(directory / FILE)


def cluster_directory(data_dir: str, name: str) -> Path:
    """Where this node keeps the shards of a cluster. A ``~`` and ``$VARIABLES`` of `data_dir` are this node's.

    Raises:
        InvalidArgumentError: a variable is not set here, or the path is not absolute.
    """
    path = Path(os.path.expandvars(data_dir)).expanduser()
    if not path.is_absolute() or re.search(r"\$\w", str(path)):
        raise InvalidArgumentError(f"data_dir ({data_dir!r}) is {path} on this node, and must be an absolute path: are its variables set?")
    return path / name


def shard_directory(data_dir: str, name: str, number: int) -> Path:
    """Where this node keeps a shard."""
    return cluster_directory(data_dir, name) / f"shard-{number}"


def records_under(directory: Path) -> list[ShardRecord]:
    """Those of all shards of a cluster that lie on this node.

    Raises:
        CorruptDataError: one is broken.
    """
    found = (ShardRecord.read(path) for path in sorted(directory.glob("shard-*")))
    return [record for record in found if record is not None]
