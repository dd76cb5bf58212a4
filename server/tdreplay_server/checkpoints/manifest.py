"""What a checkpoint holds: ``manifest.json``, and ``manifest.json.sha256``, which vouches for it as ``sha256sum`` writes it."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    PlainSerializer,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from typing_extensions import Self

from tdreplay.errors import CorruptDataError, FailedPreconditionError
from tdreplay.rate_limiters import RateLimiter, rate_limiter_of
from tdreplay.samplers import Sampler, sampler_of
from tdreplay.schema import Schema
from tdreplay.table_config import MAX_TIMES_SAMPLED, SETTINGS, TableConfig
from tdreplay.trajectories import trajectories_of, trajectories_to_json
from tdreplay_server.durability.slot_state import Kept, SlotColumn, StateValue, check_dtype
from tdreplay_server.storage.ring import check_window
from tdreplay_server.system.disk import check_name
from tdreplay_server.system.disk_errors import unreadable
from tdreplay_server.system.private_files import open_file, read_file, write_file

__all__ = ["FORMAT", "MANIFEST", "STRICT", "File", "Manifest", "StateColumn", "broken", "read_manifest", "sha256_of"]

FORMAT = 3
"""The format of a checkpoint. A newer one is refused. Format 1 knew uniform sampling alone, and no rate limiters; format 2 no trajectories."""
MANIFEST = "manifest.json"
CHUNK_BYTES = 4 << 20
STRICT = ConfigDict(strict=True, frozen=True, arbitrary_types_allowed=True)
"""How files of a checkpoint are parsed: a number is no text, and a text no number."""


def _known(version: int, info: ValidationInfo) -> int:
    if version > FORMAT:
        raise FailedPreconditionError(f"{info.context} has format {version}, and this version knows {FORMAT}: use the version that wrote it")
    return version


def _schema(entries: Any) -> Schema:
    return entries if isinstance(entries, Schema) else Schema.from_json(entries)


def _table(name: str) -> str:
    """The name of a table becomes a path."""
    return name and check_name(name, "table")


def _column(name: str) -> str:
    """The name of a column becomes a path."""
    return check_name(name, "column")


Whole = Annotated[int, Field(ge=0, lt=1 << 63)]


class File(BaseModel):
    """A file of a checkpoint."""

    model_config = STRICT

    name: Annotated[str, AfterValidator(os.path.basename)]
    size: Whole
    sha256: str


class StateColumn(BaseModel):
    """A column of what is kept beside the rows."""

    model_config = STRICT

    name: Annotated[str, AfterValidator(_column)]
    dtype: Annotated[str, AfterValidator(check_dtype)]


class Manifest(BaseModel):
    """What a checkpoint holds: the rows of the ids ``[write_count - rows, write_count)``.

    Attributes:
        format: The format of the checkpoint.
        created: when, in UTC (ISO 8601).
        table: its name; '' where it has none, or an older version wrote the checkpoint.
        buffer_size, storing_device, sampler, rate_limiter, max_times_sampled, trajectories: as in `TableConfig`.
            The oldest versions knew the first alone.
        rows: how many are in it.
        write_count: The id of the next row of the table.
        insert_count: the rows that were ever inserted into the table. Older versions did not know it: then it is `write_count`.
        row_schema: The schema of the rows; None where there never was one. In the file it is ``schema``.
        state_columns, state_values: what is kept beside the rows: one file a column, and values of the table.
        files: all of them but the manifest.
    """

    model_config = STRICT

    format: Annotated[int, AfterValidator(_known)] = FORMAT
    created: str
    table: Annotated[str, AfterValidator(_table)] = ""
    buffer_size: Whole
    storing_device: str = TableConfig.storing_device
    sampler: Annotated[InstanceOf[Sampler], BeforeValidator(sampler_of), PlainSerializer(Sampler.to_json)] = TableConfig.sampler
    rate_limiter: Annotated[InstanceOf[RateLimiter], BeforeValidator(rate_limiter_of), PlainSerializer(RateLimiter.to_json)] = (
        TableConfig.rate_limiter
    )
    max_times_sampled: Annotated[int, Field(ge=0, le=MAX_TIMES_SAMPLED)] = 0
    trajectories: Annotated[Any, BeforeValidator(trajectories_of), PlainSerializer(trajectories_to_json)] = False
    rows: Whole
    write_count: Whole
    insert_count: Whole = Field(default_factory=lambda known: known["write_count"])
    row_schema: Annotated[InstanceOf[Schema], BeforeValidator(_schema), PlainSerializer(Schema.to_json)] | None = Field(alias="schema")
    state_columns: tuple[StateColumn, ...] = ()
    state_values: dict[str, float | int] = Field(default_factory=dict)
    files: tuple[File, ...]

    @model_validator(mode="after")
    def _is_a_window(self) -> Self:
        check_window(self.buffer_size, self.rows, self.write_count)
        return self

    @property
    def config(self) -> TableConfig:
        """What the table is fixed by."""
        settings = {setting: getattr(self, setting) for setting in SETTINGS}
        return TableConfig(**settings, name=self.table)

    @property
    def kept(self) -> Kept:
        """What is kept beside the rows."""
        columns = tuple(SlotColumn(column.name, column.dtype) for column in self.state_columns)
        values = ((name, np.float64 if isinstance(value, float) else np.int64) for name, value in self.state_values.items())
        return Kept(columns, tuple(StateValue(name, np.dtype(kind).str) for name, kind in values))

    def write(self, directory: Path) -> None:
        """Writes the manifest, and what vouches for it."""
        write_file(directory / MANIFEST, f"{json.dumps(self.model_dump(by_alias=True), indent=1)}\n".encode())
        write_file(directory / f"{MANIFEST}.sha256", _signature(directory).encode())


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a checkpoint, checked.

    Raises:
        CorruptDataError: it is missing, or not what was written.
        FailedPreconditionError: a newer version wrote it, or a file of it is a link.
    """
    path = directory / MANIFEST
    try:
        if read_file(directory / f"{MANIFEST}.sha256").decode() != _signature(directory):
            raise CorruptDataError(f"{path} does not have the SHA-256 that {MANIFEST}.sha256 says")
        return Manifest.model_validate_json(read_file(path), context=path)
    except ValidationError as error:
        raise broken(path, error) from None
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError) as error:
        raise CorruptDataError(f"{directory} is not a checkpoint, or its manifest is broken: {type(error).__name__} {error}") from None
    except OSError as error:
        raise unreadable(error, str(directory)) from None


def broken(path: Path, error: ValidationError) -> CorruptDataError:
    """The first thing that is wrong with a file."""
    problem = error.errors()[0]
    place = "".join(f"{part}: " for part in problem["loc"])
    return CorruptDataError(f"{path} is not what a checkpoint has there: {place}{problem['msg'].removeprefix('Value error, ')}")


def _signature(directory: Path) -> str:
    return f"{sha256_of(directory / MANIFEST)}  {MANIFEST}\n"


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with os.fdopen(open_file(path, os.O_RDONLY), "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
