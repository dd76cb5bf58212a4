"""The server's settings: from code, the command line, the environment and a TOML file, in this order of precedence."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError
from pydantic_settings import BaseSettings, InitSettingsSource, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict
from typing_extensions import Self

from tdreplay.addresses import check_address
from tdreplay.environment import ENV_PREFIX, environment_name, unknown_names
from tdreplay.limits import DEFAULT_TABLE, MAX_BATCH_SIZE, MAX_HEADER_BYTES, MAX_MESSAGE_BYTES, MAX_SHARDS
from tdreplay.table_config import TableRequest
from tdreplay_server.access_settings import check_access, check_reach
from tdreplay_server.durability.levels import Durability
from tdreplay_server.durability.shard_mark import ShardName
from tdreplay_server.settings_file import read_settings
from tdreplay_server.system.logs import log
from tdreplay_server.table_settings import tables_of, tables_to_json
from tdreplay_server.transport.server_limits import ServerLimits

__all__ = ["ServerConfig", "not_empty"]


def _expanded(path: Path) -> Path:
    """A path that may begin with ~, as the shell leaves it in --data-dir=~/replay."""
    if "\0" in str(path):
        raise ValueError("a path cannot contain a null character")
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(f"{path} begins with ~ and a name that no user has") from None


def _number(value: object) -> object:
    """True is no number, though Python takes it for 1."""
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


def _address(address: str) -> str:
    return check_address(address, least_port=0)


def _can_trace(wanted: bool) -> bool:
    if wanted and importlib.util.find_spec("opentelemetry") is None:
        raise ValueError("needs opentelemetry-api, which is not installed: pip install 'tdreplay[server,tracing]'")
    return wanted


SettingPath = Annotated[Path, AfterValidator(_expanded)]
Whole = Annotated[int, BeforeValidator(_number)]
Seconds = Annotated[float, BeforeValidator(_number)]


class ServerConfig(BaseSettings):
    """What a server is started with. Each setting is also read from ``TDREPLAY_<NAME>`` and from the TOML file that `config` names.

    A setting that is empty is not set. In paths, a ``~`` at the start is the user's home.

    Raises:
        pydantic.ValidationError (a ValueError): a setting breaks its rule, or there is none of that name (in the environment and the file, too), or
            the file cannot be read.
    """

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True)

    config: Annotated[SettingPath | None, Field(description="A TOML file with these settings.")] = None
    address: Annotated[str, Field(description="Where to listen: HOST:PORT (port 0 picks a free one) or unix:PATH."), AfterValidator(_address)] = (
        "127.0.0.1:50051"
    )
    insecure: Annotated[
        bool,
        Field(
            description="Listen without TLS on addresses that other hosts reach, or at a Unix socket that other users could replace. They can"
            " read and change all that is sent."
        ),
    ] = False
    cert_file: Annotated[SettingPath | None, Field(description="The server's certificate, PEM, with those that sign it: it serves over TLS.")] = None
    key_file: Annotated[SettingPath | None, Field(description="The private key of cert_file, PEM.")] = None
    trusted_ca_file: Annotated[SettingPath | None, Field(description="The certificates that sign those of clients, PEM.")] = None
    client_cert_auth: Annotated[
        bool, Field(description="Let only clients in that show a certificate signed by trusted_ca_file. Its name may say their role.")
    ] = False
    tokens_file: Annotated[
        SettingPath | None,
        Field(description="The tokens of those who may call, made by 'tdreplay-server token create'. Without one, nobody is asked for a token."),
    ] = None
    socket_mode: Annotated[
        str, Field(pattern="^0?[67][0-7][0-7]$", description="Which users may connect to a Unix socket, as chmod writes it: 660 lets its group.")
    ] = "600"
    metrics_address: Annotated[
        str | None, Field(description="Where to serve Prometheus' /metrics: HOST:PORT."), AfterValidator(lambda text: text and _address(text))
    ] = None
    tracing: Annotated[
        bool,
        Field(description="Make a span of each call for OpenTelemetry, which the process has to be set up for: docs/metrics.md says how."),
        AfterValidator(_can_trace),
    ] = False
    data_dir: Annotated[
        SettingPath | None, Field(description="The directory that keeps the rows. Without one, the rows are lost when the server ends.")
    ] = None
    cluster: Annotated[
        str | None,
        Field(
            pattern=r"^[A-Za-z0-9_.-]{1,64}$",
            description="The name of the cluster of which the server is a shard: 1 to 64 letters, digits, '_', '-' or '.'. Clients refuse shards of"
            " different clusters, and a server refuses a data_dir of another one.",
        ),
    ] = None
    shard: Annotated[
        Whole | None,
        Field(
            ge=0,
            lt=MAX_SHARDS,
            description="Which shard of one buffer over several servers this one is, from 0 on. A data_dir is of that shard from then on.",
        ),
    ] = None
    buffer_size: Annotated[
        Whole | None, Field(ge=1, lt=1 << 63, description="Creates the table 'default' at the start, with room for so many rows.")
    ] = None
    tables: Annotated[
        Mapping[str, TableRequest] | None,
        NoDecode,
        PlainValidator(tables_of),
        PlainSerializer(tables_to_json),
        Field(description="Tables that are there from the start: in a file as [tables.NAME], elsewhere as JSON."),
    ] = None
    storing_device: Annotated[str, Field(description="Where the rows of new tables lie: cpu, or cuda:N.")] = "cpu"
    durability: Annotated[
        str,
        Field(
            description="What acknowledged rows survive: process (the death of the server), interval:SECONDS (that, and a loss of power,"
            " but for the rows of the last seconds) or power (both)."
        ),
    ] = "process"
    max_workers: Annotated[
        Whole, Field(ge=2, le=65536, description="Calls that are served at once, each by a thread, which is started when it is needed.")
    ] = 4096
    max_streams: Annotated[Whole, Field(ge=1, description="Long-lived streams among them; one more is refused. Below max_workers.")] = 2048
    max_calls_per_client: Annotated[
        Whole | None,
        Field(
            ge=1,
            description="Calls that one client may have open: one name, or one host where callers have none. By default three quarters;"
            " clients of this host that have no name cannot be told apart, and may have all.",
        ),
    ] = None
    max_streams_per_client: Annotated[
        Whole | None, Field(ge=1, description="Streams that one client may have open. By default three quarters of max_streams, in the same way.")
    ] = None
    max_tables: Annotated[Whole, Field(ge=1, description="How many tables there may be.")] = 256
    max_connections: Annotated[
        Whole,
        Field(ge=1, description="Connections that may be open; one more is closed at once. At most half of its open files."),
    ] = 8192
    max_message_bytes: Annotated[
        Whole, Field(ge=4 << 20, le=MAX_MESSAGE_BYTES, description="The largest message of a client, and so the largest row that it can insert.")
    ] = MAX_MESSAGE_BYTES
    max_bytes_in_flight: Annotated[
        Whole,
        Field(ge=1, description="Bytes of requests that are worked on, and bytes of answers that are on their way. At least max_message_bytes."),
    ] = 1 << 30
    max_header_bytes: Annotated[
        Whole,
        Field(ge=1 << 10, le=MAX_HEADER_BYTES, description="The largest header of an inserted block, with its fields' names and shapes."),
    ] = MAX_HEADER_BYTES
    max_metadata_bytes: Annotated[
        Whole,
        Field(ge=4 << 10, le=1 << 20, description="The most metadata of a call: its HTTP/2 headers, each with 32 bytes more."),
    ] = 16 << 10
    max_batch_rows: Annotated[Whole, Field(ge=1, le=MAX_BATCH_SIZE, description="The most rows of a sampled batch, and of an inserted block.")] = (
        MAX_BATCH_SIZE
    )
    connection_idle_seconds: Annotated[
        Seconds, Field(gt=0, le=1e6, description="A connection that has had no call for so long is closed. Clients connect again by themselves.")
    ] = 300.0
    shared_memory_dir: Annotated[
        SettingPath | None,
        Field(
            description="A folder that clients in other containers share with the server, such as /dev/shm: large batches go through files in it."
            " Without one, clients of this host, user and PID namespace share memory."
        ),
    ] = None
    grace_seconds: Annotated[
        Seconds, Field(ge=0, le=3600, description="How long running calls may go on when the server is told to stop, in seconds.")
    ] = 5.0

    @field_validator("shared_memory_dir")
    @classmethod
    def _folder_is_there(cls, path: Path | None) -> Path | None:
        if path is not None and not (path.is_dir() and os.access(path, os.W_OK | os.X_OK)):
            raise ValueError(f"{path} is not a folder that this process can write to")
        return path

    @field_validator("data_dir")
    @classmethod
    def _data_dir_is_no_file(cls, path: Path | None) -> Path | None:
        if path is not None and path.exists() and not path.is_dir():
            raise ValueError(f"{path} is not a directory")
        return path

    @field_validator("storing_device")
    @classmethod
    def _device_is_one(cls, name: str) -> str:
        if name == "cpu":
            return name
        import torch  # Here: it takes a second, and servers without a GPU do not need it to know their settings.

        try:
            device = torch.device(name)
        except RuntimeError:
            raise ValueError("must be cpu or cuda:N") from None
        if device.type not in ("cpu", "cuda"):
            raise ValueError("must be cpu or cuda:N")
        return str(device)

    @field_validator("durability")
    @classmethod
    def _durability_is_one(cls, text: str) -> str:
        Durability.parse(text)
        return text

    @model_validator(mode="after")
    def _the_default_table_is_named_once(self) -> Self:
        if self.buffer_size is not None and DEFAULT_TABLE in (self.tables or {}):
            raise ValueError(
                f"buffer_size ({self.buffer_size}) and tables.{DEFAULT_TABLE} both make the table '{DEFAULT_TABLE}': leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _access_is_whole(self) -> Self:
        check_access(self)
        for name in ("address", "metrics_address"):
            check_reach(name, getattr(self, name), self)
        return self

    @model_validator(mode="after")
    def _what_is_to_survive_has_a_place(self) -> Self:
        if self.data_dir is None and Durability.parse(self.durability).reaches_disk:
            raise ValueError(f"durability ({self.durability}) needs a data_dir: without one the rows end with the server")
        return self

    @model_validator(mode="after")
    def _unary_calls_keep_a_worker(self) -> Self:
        if self.max_streams >= self.max_workers:
            raise ValueError(
                f"max_streams ({self.max_streams}) must be below max_workers ({self.max_workers}), or streams would starve all other calls"
            )
        return self

    @model_validator(mode="after")
    def _a_message_may_be_in_flight(self) -> Self:
        if self.max_bytes_in_flight < self.max_message_bytes:
            raise ValueError(
                f"max_bytes_in_flight ({self.max_bytes_in_flight}) must be at least max_message_bytes ({self.max_message_bytes}),"
                " or the largest message would never pass"
            )
        return self

    @property
    def max_standing(self) -> int:
        """Calls that clients may hold open between single inserts and batches: half of the workers that streams leave."""
        return (self.max_workers - self.max_streams) // 2

    @property
    def shard_name(self) -> ShardName:
        """Which shard it makes of the server."""
        return ShardName(self.cluster or "", self.shard)

    @property
    def limits(self) -> ServerLimits:
        """What it bounds of what clients may do."""
        values = {name: getattr(self, name) for name in ServerLimits.__dataclass_fields__}
        return ServerLimits(**values)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Code and command line, then the environment, then the TOML file: of each what is not empty."""
        given, environment = not_empty(init_settings()), not_empty(env_settings())
        file = given.get("config") or environment.get("config")
        try:
            _check_environment(cls.model_fields)
            in_file = not_empty(read_settings(_expanded(Path(file)), cls.model_fields)) if isinstance(file, (str, Path)) else {}
        except ValueError as error:
            raise ValidationError.from_exception_data(cls.__name__, [_problem(error)]) from None
        return tuple(InitSettingsSource(settings_cls, init_kwargs=settings) for settings in (given, environment, in_file))


def _problem(error: ValueError) -> InitErrorDetails:
    """What is wrong with the settings as a whole, for a ValidationError."""
    return {"type": PydanticCustomError("settings", "{reason}", {"reason": str(error)}), "input": None}


def _check_environment(settings: Collection[str]) -> None:
    unknown = unknown_names(os.environ, settings)
    if unknown:
        known = " ".join(map(environment_name, settings))
        log.warning("variables that are not settings of the server are ignored", names=" ".join(unknown), settings=known)


def not_empty(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that are not empty. A compose file writes an empty text for a variable that is not set."""
    return {name: value for name, value in settings.items() if not (isinstance(value, str) and not value.strip())}
