"""The commands ``tdreplay table ...``. What brings torch is imported by what asks a server: help, and a wrong setting, are said at once."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tdreplay.command import one_line
from tdreplay.errors import InvalidArgumentError
from tdreplay.rate_limiters import RATE_LIMITERS
from tdreplay.samplers import SAMPLERS
from tdreplay.table_config import TableRequest
from tdreplay_client.commands.calls import connected, described, described_tables
from tdreplay_client.commands.options import Address, Timeout

if TYPE_CHECKING:
    from tdreplay.table_description import TableDescription, Waits
    from tdreplay.trajectory_state import Anchors, Statistics, TrajectoryState

__all__ = ["table"]

Name = Annotated[str, typer.Argument(help="The table's name: 1 to 64 letters, digits, '_' or '-'.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

table = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, help="Create, list, describe and drop the tables of a server.")


@table.command()
def create(
    name: Name,
    buffer_size: Annotated[int, typer.Option(help="The capacity, in rows.")],
    sampler: Annotated[str | None, typer.Option(help=f"What chooses the rows of a batch: {', '.join(SAMPLERS)}. [default: uniform]")] = None,
    alpha: Annotated[float | None, typer.Option(help="Of prioritized: a row's probability is proportional to its priority to this power.")] = None,
    rate_limiter: Annotated[str | None, typer.Option(help=f"What decides who waits: {', '.join(RATE_LIMITERS)}. [default: none]")] = None,
    samples_per_insert: Annotated[float | None, typer.Option(help="Of samples_per_insert: how often a row is drawn, on average.")] = None,
    min_size: Annotated[
        int | None, typer.Option(help="Of min_size and samples_per_insert: the rows that have to be there before one is drawn.")
    ] = None,
    error_buffer: Annotated[
        float | None, typer.Option(help="Of samples_per_insert: by how many draws either side may be ahead of the other.")
    ] = None,
    max_size: Annotated[int | None, typer.Option(help="Of queue: the rows that may be inserted and not drawn.")] = None,
    max_times_sampled: Annotated[
        int | None, typer.Option(help="How often a row is drawn before it leaves; 0: any number of times. [default: 0]")
    ] = None,
    trajectories: Annotated[
        bool | None,
        typer.Option("--trajectories/--no-trajectories", help="The rows are steps of episodes, each stored once. [default: no-trajectories]"),
    ] = None,
    ends: Annotated[
        str | None,
        typer.Option(
            metavar="TERMINATED[,TRUNCATED]", help="Of trajectories: the fields that say how an episode ended. [default: terminated,truncated]"
        ),
    ] = None,
    final_field: Annotated[
        list[str] | None, typer.Option(help="Of trajectories: a field of an observation, or its parent; may be given several times. [default: obs]")
    ] = None,
    reward: Annotated[str | None, typer.Option(help="Of trajectories: the field with the reward; '': there is none. [default: reward]")] = None,
    storing_device: Annotated[str | None, typer.Option(help="Where the rows lie: cpu, or cuda:N. [default: the server's setting]")] = None,
    address: Address = "",
    timeout: Timeout = 30.0,
) -> None:
    """Create a table, or check that the one of this name has these settings.

    A setting that is not given has its default in a new table, and may be anything in one that is there.
    """
    numbers = {"samples_per_insert": samples_per_insert, "min_size": min_size, "error_buffer": error_buffer, "max_size": max_size}
    chosen, limiter = _named("--sampler", sampler, {"alpha": alpha}), _named("--rate-limiter", rate_limiter, numbers)
    steps = _trajectories(trajectories, {"ends": None if ends is None else ends.split(","), "final_fields": final_field, "reward": reward})
    request = TableRequest.of(buffer_size, storing_device, chosen, limiter, max_times_sampled, steps, name)
    from tdreplay_client.transport.table_requests import create_table

    with connected(address, timeout) as connection:
        created = connection.retried(lambda budget: create_table(connection, request, budget))
    typer.echo(f"table {name} {'created' if created else 'was there, with these settings'}")


@table.command("list")
def list_tables(as_json: Json = False, address: Address = "", timeout: Timeout = 30.0) -> None:
    """List the tables of a server: one line each, with its rows, its capacity, its sampler and its rate limiter."""
    with connected(address, timeout) as connection:
        found = described_tables(connection)
    if as_json:
        typer.echo(json.dumps([description.to_json() for description in found]))
    for line in () if as_json else _aligned([_summary(description) for description in found]):
        typer.echo(line)


@table.command()
def describe(name: Name, as_json: Json = False, address: Address = "", timeout: Timeout = 30.0) -> None:
    """Say what a table was made with, what is in it, how fast rows come and go, and who waits for whom."""
    with connected(address, timeout) as connection:
        description = described(connection, name)
    if as_json:
        typer.echo(json.dumps(description.to_json()))
    for line in () if as_json else _page(description):
        typer.echo(line)


@table.command()
def drop(name: Name, yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False, address: Address = "", timeout: Timeout = 30.0) -> None:
    """Remove a table and its rows from the server. Its checkpoints stay."""
    from tdreplay.v1 import replay_buffer_pb2 as pb

    with connected(address, timeout) as connection:
        if not yes:
            size = described(connection, name).size
            typer.confirm(f"Drop table {one_line(name)} with {size} rows?", abort=True, err=True)
        connection.admitted(lambda budget: connection.unary("DropTable", pb.DropTableRequest(table=name), budget))
    typer.echo(f"table {name} dropped")


def _named(option: str, name: str | None, numbers: dict[str, Any]) -> dict[str, Any] | None:
    """A sampler or a rate limiter with its numbers, as it was given."""
    given = {number: value for number, value in numbers.items() if value is not None}
    if name is None and given:
        raise InvalidArgumentError(f"--{next(iter(given)).replace('_', '-')} needs {option}")
    return None if name is None else {"name": name, **given}


def _trajectories(given: bool | None, names: dict[str, Any]) -> dict[str, Any] | bool | None:
    """The setting `trajectories` with its names of fields, as it was given."""
    said = {name: value for name, value in names.items() if value is not None}
    if said and not given:
        raise InvalidArgumentError(f"--{next(iter(said)).replace('final_fields', 'final-field')} needs --trajectories")
    return said or given


# -- texts ------------------------------------------------------------------------------------------------------------------------------------


def _summary(description: TableDescription) -> list[str]:
    config = description.config
    leaves = f"max_times_sampled {config.max_times_sampled}" if config.is_consuming else ""
    kept = "trajectories" if config.trajectories else leaves
    return [config.name, f"{description.size} of {description.buffer_size} rows", str(config.sampler), str(config.rate_limiter), kept]


def _aligned(rows: list[list[str]]) -> list[str]:
    """The rows, with their columns one below the other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, map(one_line, row), widths)).rstrip() for row in rows]


def _page(description: TableDescription) -> list[str]:
    """A line for each thing that is known of a table, under the name that Python has for it."""
    config, oldest = description.config, description.write_count - description.size
    lines = {
        "table": config.name,
        "buffer_size": description.buffer_size,
        "size": f"{description.size}, row ids [{oldest}, {description.write_count}), next slot {description.pointer}",
        "sampler": config.sampler,
        "rate_limiter": config.rate_limiter,
        "max_times_sampled": config.max_times_sampled or "0 (any number of times)",
        "trajectories": config.trajectories or "no: rows are no steps",
        "storing_device": description.storing_device,
        "durability": description.durability,
        "generation_id": description.generation_id,
        "insert_count": f"{description.insert_count}, {description.insert_rate:.1f} a second",
        "sample_count": f"{description.sample_count}, {description.sample_rate:.1f} a second",
        "available": description.available,
        "leased": description.leased,
        "priorities": f"{description.updated} updated, {description.stale} stale",
        "inserts": _waiting(description.inserts),
        "samples": _waiting(description.samples),
        **({} if description.trajectories is None else _steps(description.trajectories)),
        **({} if description.schema is None else {f"field {field.name}": field for field in description.schema.fields}),
    }
    return _aligned([[name, str(value)] for name, value in lines.items()])


def _waiting(waits: Waits) -> str:
    ends = f": {waits.waits_for}" if waits.waits_for else ""
    return f"{waits.waiting} wait, for {waits.seconds:.1f} s so far{ends}"


def _steps(state: TrajectoryState) -> dict[str, Any]:
    """The lines of a table with trajectories."""
    return {
        "steps": f"{state.steps}, {state.transitions} of them with the observation after them",
        "episodes": f"{state.episodes}, {state.open_episodes} of them open or abandoned",
        **{f"anchors {_rule(anchors)}": anchors.count for anchors in state.anchors},
        "episode_return": _numbers(state.episode_return),
        "episode_length": _numbers(state.episode_length),
    }


def _rule(anchors: Anchors) -> str:
    """Which steps are anchors, in words."""
    stride = f" stride {anchors.stride}" if anchors.stride > 1 else ""
    return f"before {anchors.before} steps {anchors.steps}{' next_step' if anchors.next_step else ''}{' whole' if anchors.whole else ''}{stride}"


def _numbers(statistics: Statistics) -> str:
    if not statistics.count:
        return "no episode ended since the server started"
    return "mean {mean:g}, std {std:g}, from {min:g} to {max:g}, of the last {count} episodes that ended".format(**vars(statistics))
