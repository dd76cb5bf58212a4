"""What is imported: an export, or files of others."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from tdreplay.errors import CorruptDataError, FailedPreconditionError, InvalidArgumentError, SchemaError
from tdreplay.fields import Field
from tdreplay.schema import Schema
from tdreplay.system_fields import INDEX, PRIORITY, ROW_ID
from tdreplay_client.files.formats import FORMATS
from tdreplay_client.files.manifest import MANIFEST, Manifest, Shard, read_manifest
from tdreplay_client.files.new_export import CHUNK_BYTES, PART
from tdreplay_client.files.shards import FileFormat, ShardReader, open_regular

__all__ = ["Source", "found_source"]


@dataclass(frozen=True)
class Source:
    """Files with rows.

    Attributes:
        path: the folder, or the one file.
        shards: the files, in the order of their rows. Those of others have no digest.
        schema: the fields of the rows.
        has_priorities: whether the field ``priority`` is the priorities of the rows.
        manifest: of an export; None: the files are of others.
    """

    path: Path
    shards: tuple[Shard, ...]
    schema: Schema
    has_priorities: bool
    manifest: Manifest | None = None

    @property
    def rows(self) -> int:
        """The number of all rows."""
        return sum(shard.rows for shard in self.shards)

    @property
    def digest(self) -> str:
        """What the files are known by: a text of 32 characters."""
        listed = [f"{shard.file} {shard.rows} {shard.bytes} {shard.sha256}" for shard in self.shards]
        return hashlib.sha256("\n".join([str(self.schema.to_json()), *listed]).encode()).hexdigest()[:32]

    def open(self, shard: Shard) -> ShardReader:
        """A shard, after its head was checked, and its digest where there is one.

        Raises:
            CorruptDataError: it is not what was written.
            FailedPreconditionError: it is no regular file, or its format cannot be read here.
        """
        path = self.path if self.path.is_file() else self.path / shard.file
        reader = _reader(path, _format_of(path))
        try:
            self._check(reader, path, shard)
        except BaseException:
            reader.close()
            raise
        return reader

    def _check(self, reader: ShardReader, path: Path, shard: Shard) -> None:
        if shard.sha256 and _digest(path) != (shard.bytes, shard.sha256):
            raise reader.broken("it does not have the size and the SHA-256 that the manifest lists: bytes of it changed")
        reader.see_as(self.schema)
        schema = _schema(reader, self.has_priorities, self.manifest)
        if reader.rows != shard.rows:
            raise reader.broken(f"it has {reader.rows} rows, and {shard.rows} are listed")
        try:
            self.schema.check(schema)
        except SchemaError as error:
            raise SchemaError(f"{reader.name}: {error}") from None


def found_source(path: Path, *, priorities: bool) -> Source:
    """What lies at `path`: an export, a folder of files of one format, or one file.

    Args:
        path: the folder or the file.
        priorities: whether a field ``priority`` of files of others is the priorities of the rows.

    Raises:
        CorruptDataError: a file is not what it should be.
        FailedPreconditionError: it is neither, or an export that is not whole.
        SchemaError: the files have different fields.
    """
    if not path.exists():
        raise FailedPreconditionError(f"{path} is not there")
    if path.is_dir() and (path / MANIFEST).exists():
        return _export(path)
    files = _files_in(path) if path.is_dir() else [path]
    return _of_others(path, files, priorities=priorities)


def _export(path: Path) -> Source:
    manifest = read_manifest(path)
    if manifest.file_format not in FORMATS:
        raise CorruptDataError(f"{path / MANIFEST}: the format {manifest.file_format[:40]!r} must be one of {sorted(FORMATS)}")
    for shard in manifest.shards:
        file = path / shard.file
        if not file.is_file() or file.stat().st_size != shard.bytes:
            raise CorruptDataError(f"{file} is not there with the {shard.bytes} bytes that the manifest lists")
    return Source(path, manifest.shards, manifest.schema, manifest.has_priorities, manifest)


def _files_in(path: Path) -> list[Path]:
    names = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    unfinished = next((entry for entry in names if entry.name.endswith(PART)), None)
    if unfinished is not None:
        raise FailedPreconditionError(f"{path} is an export that was not finished: it has {unfinished.name}, and no {MANIFEST}")
    files = [entry for entry in names if entry.suffix[1:] in FORMATS]
    if not files or len({entry.suffix for entry in files}) > 1:
        raise FailedPreconditionError(f"{path} must have a {MANIFEST}, or files of one of these formats: {', '.join(FORMATS)}")
    return files


def _of_others(path: Path, files: list[Path], *, priorities: bool) -> Source:
    source: Source | None = None
    shards: list[Shard] = []
    for file in files:
        with _reader(file, _format_of(file)) as reader:
            given = priorities and any(_is(field, PRIORITY) for field in reader.fields)
            schema = _schema(reader, given, None)
            source = source or Source(path, (), schema, given)
            if schema != source.schema or given != source.has_priorities:
                raise SchemaError(f"{file} has other fields than {files[0]}")
            if reader.rows:
                shards.append(Shard(file.name, reader.rows, file.stat().st_size, ""))
    if source is None or not shards:
        raise InvalidArgumentError(f"{path} has no rows")
    return replace(source, shards=tuple(shards))


def _format_of(path: Path) -> FileFormat:
    found = FORMATS.get(path.suffix[1:])
    if found is None:
        raise FailedPreconditionError(f"{path} must be a folder, or a file whose name ends with .{', .'.join(FORMATS)}")
    found.check()
    return found


def _reader(path: Path, file_format: FileFormat) -> ShardReader:
    file = open_regular(path)
    try:
        return file_format.read(file, str(path))
    except BaseException:
        file.close()
        raise


def _schema(reader: ShardReader, has_priorities: bool, manifest: Manifest | None) -> Schema:
    """The schema of a shard: without the system fields, and without priorities."""
    left_out = (INDEX, ROW_ID, PRIORITY) if has_priorities else (INDEX, ROW_ID)
    fields = [field for field in reader.fields if not any(_is(field, system) for system in left_out)]
    row_shape, names = (manifest.schema.row_shape, manifest.schema.dim_names) if manifest else ((), ())
    return Schema.made_of(fields, row_shape, names)


def _is(field: Field, system: Field) -> bool:
    return (field.name, field.dtype, field.shape) == (system.name, system.dtype, system.shape)


def _digest(path: Path) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    with open_regular(path) as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()
