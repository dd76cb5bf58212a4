"""What a table says of itself, to protobuf messages and back."""

from __future__ import annotations

from tdreplay.errors import CodecError, InvalidArgumentError
from tdreplay.messages import durability_to_message, schema_to_message, state_from_message
from tdreplay.state import State
from tdreplay.table_config import TableConfig
from tdreplay.table_description import TableDescription, Waits
from tdreplay.table_messages import table_config_from_message, table_config_to_message
from tdreplay.trajectory_messages import trajectory_state_from_message, trajectory_state_to_message
from tdreplay.v1 import replay_buffer_pb2 as pb

__all__ = ["description_from_message", "description_to_message"]

PLAIN = ("generation_id", "available", "leased", "sample_count", "updated", "stale", "insert_rate", "sample_rate")
"""What has the same name and value in both."""


def description_to_message(description: TableDescription) -> pb.DescribeResponse:
    """The message that describes a table."""
    return pb.DescribeResponse(
        buffer_size=description.buffer_size,
        size=description.size,
        pointer=description.pointer,
        write_count=description.write_count,
        storing_device=str(description.storing_device),
        schema=None if description.schema is None else schema_to_message(description.schema),
        durability=durability_to_message(description.durability),
        insert_count=description.insert_count,
        config=table_config_to_message(description.config),
        inserts=pb.Waits(**vars(description.inserts)),
        samples=pb.Waits(**vars(description.samples)),
        trajectories=None if description.trajectories is None else trajectory_state_to_message(description.trajectories),
        **{name: getattr(description, name) for name in PLAIN},
    )


def description_from_message(message: pb.DescribeResponse, name: str) -> TableDescription:
    """What a message says of the table of that name. Older servers say less: then the rest is 0, and the config that of their tables.

    Raises:
        CodecError: it describes no table, or one with settings that this version does not know.
    """
    state = state_from_message(message)
    try:
        config = table_config_from_message(message.config, name) if message.HasField("config") else _older_config(state, name)
    except InvalidArgumentError as error:
        raise CodecError(f"table {name!r} has settings that this version does not know: {error}") from None
    plain = {field: getattr(message, field) for field in PLAIN}
    return TableDescription(
        **vars(state),
        config=config,
        inserts=_waits(message.inserts),
        samples=_waits(message.samples),
        trajectories=trajectory_state_from_message(message.trajectories) if message.HasField("trajectories") else None,
        **plain,
    )


def _older_config(state: State, name: str) -> TableConfig:
    return TableConfig(state.buffer_size, str(state.storing_device), name=name)


def _waits(message: pb.Waits) -> Waits:
    return Waits(message.waiting, message.seconds, message.waits_for)
