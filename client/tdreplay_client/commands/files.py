"""The commands ``tdreplay export`` and ``tdreplay import``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tdreplay.command import one_line
from tdreplay.errors import InvalidArgumentError
from tdreplay_client.commands.calls import buffer_at
from tdreplay_client.commands.options import Address, Timeout

__all__ = ["export", "import_"]

Table = Annotated[str, typer.Argument(help="The table's name.")]


def export(
    table: Table,
    directory: Annotated[Path, typer.Argument(help="The folder for the files; it is made.")],
    file_format: Annotated[str, typer.Option("--format", help="safetensors, npz or parquet.")] = "safetensors",
    rows_per_shard: Annotated[int | None, typer.Option(help="The rows of each file. [default: as many as fit 64 MiB]")] = None,
    fields: Annotated[
        list[str] | None, typer.Option("--fields", metavar="NAME[,NAME...]", help="Only these fields; may be given several times. [default: all]")
    ] = None,
    newest: Annotated[int | None, typer.Option(help="Only so many rows, the newest ones. [default: all]")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export in the folder.")] = False,
    address: Address = "",
    timeout: Timeout = 30.0,
) -> None:
    """Write the rows of a table to files, while traffic goes on. Nothing is taken from the table.

    The folder is whole when it has manifest.json. Rows that are overwritten before they are read are left out, and counted; a checkpoint has all rows
    of one moment.
    """
    names = [name for given in fields or () for name in given.split(",")]
    with buffer_at(address, timeout, table) as buffer:
        from tdreplay_client.files import export_table

        made = export_table(
            buffer,
            directory,
            file_format=file_format,
            rows_per_shard=rows_per_shard,
            fields=names or None,
            newest=newest,
            overwrite=overwrite,
            progress=True,
        )
    typer.echo(f"export {one_line(made.path)}: {made.rows} rows in {made.shards} files, {made.bytes} bytes")
    if made.overwritten or made.left_out:
        behind = f", and {made.left_out} steps that follow them in their episodes were left out" if made.left_out else ""
        typer.echo(f"{made.overwritten} rows were overwritten before they were read{behind}", err=True)


def import_(
    path: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="The folder of an export; or a folder of files of one format, or one file.")],
    table: Table,
    create: Annotated[bool, typer.Option("--create", help="Make the table, with the settings that the exported one had.")] = False,
    buffer_size: Annotated[int | None, typer.Option(help="With --create: the capacity, in rows. [default: that of the exported table]")] = None,
    append: Annotated[bool, typer.Option("--append", help="The table may have rows.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an import of the same files that did not end.")] = False,
    address: Address = "",
    timeout: Timeout = 30.0,
) -> None:
    """Store the rows of files in a table, each once.

    The files are those of an export, or any .safetensors, .npz or .parquet files whose arrays have one row after the other.
    """
    with buffer_at(address, timeout, table, **_settings(path, create, buffer_size)) as buffer:
        from tdreplay_client.files import import_table

        stored = import_table(buffer, path, append=append, resume=resume, progress=True)
        size = buffer.size
    before = f", after {stored.stored_before} that were there" if stored.stored_before else ""
    typer.echo(f"table {one_line(table)}: {stored.rows} rows stored{before}; it has {size}")


def _settings(path: Path, create: bool, buffer_size: int | None) -> dict[str, Any]:
    """The settings of a table that is to be made; none where it is there."""
    if not create:
        if buffer_size is not None:
            raise InvalidArgumentError("--buffer-size needs --create")
        return {}
    from tdreplay_client.files import read_manifest
    from tdreplay_client.files.manifest import MANIFEST

    if not (path / MANIFEST).exists():
        if buffer_size is None:
            raise InvalidArgumentError(f"--create needs --buffer-size: {path} has no {MANIFEST} that says it")
        return {"buffer_size": buffer_size}
    config = read_manifest(path).config
    return {
        "buffer_size": buffer_size or config.buffer_size,
        "sampler": config.sampler,
        "rate_limiter": config.rate_limiter,
        "max_times_sampled": config.max_times_sampled,
        "trajectories": config.trajectories,
    }
