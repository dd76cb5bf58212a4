"""What the file formats have in common: a file with the fields of some rows, read a few rows at a time."""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch
from typing_extensions import Self

from tdreplay.errors import CorruptDataError, FailedPreconditionError
from tdreplay.fields import Field
from tdreplay.schema import Columns, DimNames, Schema

__all__ = ["MAX_FIELDS", "FileFormat", "ShardLayout", "ShardReader", "check_bools", "open_regular"]

MAX_FIELDS = 2048
"""The most fields that a file may have."""


@dataclass(frozen=True)
class ShardLayout:
    """What lies in a shard that is written.

    Attributes:
        fields: the fields, those of the system among them.
        row_shape: the batch dimensions of a row.
        dim_names: the names of the batch dimensions.
    """

    fields: tuple[Field, ...]
    row_shape: tuple[int, ...] = ()
    dim_names: DimNames = ()


class ShardReader(ABC):
    """A file that is open for reading. Its head was checked; its rows are checked as they come.

    Attributes:
        name: of the file, for errors.
        fields: what each row has.
        rows: the number of rows.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self.name = file, name
        self.fields: tuple[Field, ...] = ()
        self.rows = 0

    @abstractmethod
    def parts(self, start: int, rows: int) -> Iterator[dict[str, torch.Tensor]]:
        """The rows from `start` on, at most `rows` at a time: field name -> tensor of shape [n, ...], in memory of its own.

        Raises:
            CorruptDataError: they are not what the head says.
        """

    def see_as(self, schema: Schema) -> None:  # noqa: B027 - most formats have every dtype.
        """Fields of a dtype that the format does not have are those of the schema from now on, with the same bits."""

    def check(self, rows: int) -> None:
        """Reads all rows once, at most `rows` at a time.

        Raises:
            CorruptDataError: as `parts`.
        """
        for _ in self.parts(0, rows):
            continue

    def broken(self, why: object) -> CorruptDataError:
        """The error that the file is not what it should be."""
        return CorruptDataError(f"{self.name}: {why}")

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


@dataclass(frozen=True)
class FileFormat:
    """A file format.

    Attributes:
        name: of the format, and the ending of its files.
        write: writes a shard: the file, its layout, and its rows in parts.
        read: opens a shard: the file, which the reader closes, and its name for errors.
        check: passes where the format can be used here.
    """

    name: str
    write: Callable[[BinaryIO, ShardLayout, Sequence[Columns]], None]
    read: Callable[[BinaryIO, str], ShardReader]
    check: Callable[[], object] = bool

    @property
    def suffix(self) -> str:
        """The ending of its files."""
        return f".{self.name}"


def open_regular(path: Path) -> BinaryIO:
    """A file that is open for reading.

    Raises:
        FailedPreconditionError: it is no regular file, or a link.
        OSError: it cannot be opened.
    """
    if path.is_symlink():
        raise FailedPreconditionError(f"{path} is a link: name the file itself")
    number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)  # Not to wait for somebody who writes to a pipe.
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise FailedPreconditionError(f"{path} is no regular file")
    return os.fdopen(number, "rb")


def check_bools(reader: ShardReader, name: str, raw: torch.Tensor) -> torch.Tensor:
    """Bytes as bools. torch relies on it that each is 0 or 1.

    Raises:
        CorruptDataError: one is not.
    """
    if raw.numel() and int(raw.max()) > 1:
        raise reader.broken(f"field {name!r}: a bool must be 0 or 1, and one is {int(raw.max())}")
    return raw.view(torch.bool)
