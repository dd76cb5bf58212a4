"""What a table is made with, to protobuf messages and back."""

from __future__ import annotations

from typing import Any, Literal

from tdreplay.named_settings import NamedSetting
from tdreplay.table_config import TableConfig, TableRequest
from tdreplay.trajectories import Trajectories, trajectories_of
from tdreplay.v1 import replay_buffer_pb2 as pb

__all__ = ["create_table_request", "table_config_from_message", "table_config_to_message", "table_request_from_message", "trajectories_from_message"]


def create_table_request(request: TableRequest) -> pb.CreateTableRequest:
    """The message that asks for a table. What was not said is not set."""
    settings: dict[str, Any] = {setting: value for setting, value in vars(request).items() if value is not None and setting != "name"}
    return pb.CreateTableRequest(table=request.name, **_messages(settings))


def table_request_from_message(message: pb.CreateTableRequest | pb.TableConfig, name: str) -> TableRequest:
    """The request that a message describes.

    Raises:
        InvalidArgumentError: a setting breaks its rule.
    """
    said: dict[str, Any] = {"storing_device": message.storing_device}
    for setting in ("sampler", "rate_limiter"):
        if message.HasField(setting):
            said[setting] = {field.name: value for field, value in getattr(message, setting).ListFields()}
    if message.HasField("max_times_sampled"):
        said["max_times_sampled"] = message.max_times_sampled
    if message.HasField("trajectories"):
        said["trajectories"] = _trajectories(message.trajectories)
    return TableRequest.of(message.buffer_size, name=name, **said, of_shard=True)


def table_config_to_message(config: TableConfig) -> pb.TableConfig:
    """The message that describes a table."""
    return pb.TableConfig(**_messages({setting: value for setting, value in vars(config).items() if setting != "name"}))


def table_config_from_message(message: pb.TableConfig, name: str) -> TableConfig:
    """The config that a message describes.

    Raises:
        InvalidArgumentError: a setting breaks its rule, as those of a newer version may.
    """
    return table_request_from_message(message, name).config("cpu")


def trajectories_from_message(message: pb.TableConfig) -> Trajectories | Literal[False]:
    """What a table knows of the episodes that its rows belong to; False: they are no steps.

    Raises:
        InvalidArgumentError: it breaks its rule.
    """
    return trajectories_of(_trajectories(message.trajectories)) if message.HasField("trajectories") else False


def _messages(settings: dict[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {setting: value.to_json() if isinstance(value, NamedSetting) else value for setting, value in settings.items()}
    trajectories = values.pop("trajectories", None)
    return values if trajectories is None else values | {"trajectories": pb.Trajectories(**trajectories.to_json() if trajectories else {})}


def _trajectories(message: pb.Trajectories) -> Any:
    """Without a field, the message says that the rows are no steps."""
    return {"ends": message.ends, "final_fields": message.final_fields, "reward": message.reward} if message.ByteSize() else False
