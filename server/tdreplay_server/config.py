"""The server's settings: from code, the command line, the environment and a TOML file, in this order of precedence."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource
from typing_extensions import Self

from tdreplay_server.durability import Durability

__all__ = ["ENV_PREFIX", "ServerConfig"]

ENV_PREFIX = "TDREPLAY_"


class ServerConfig(BaseSettings):
    """What a server is started with. Each setting is also read from ``TDREPLAY_<NAME>`` and from the TOML file that `config` names.

    Raises:
        pydantic.ValidationError (a ValueError): a setting breaks its rule; the message names both.
    """

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True)

    config: Annotated[Path | None, Field(description="A TOML file with these settings.")] = None
    address: Annotated[str, Field(description="Where to listen: HOST:PORT (port 0 picks a free one) or unix:PATH.")] = "127.0.0.1:50051"
    data_dir: Annotated[Path | None, Field(description="Where the rows lie. Unset: files without names, which end with the server.")] = None
    buffer_size: Annotated[int | None, Field(ge=1, description="Creates the table 'default' with this capacity, in rows, at the start.")] = None
    storing_device: Annotated[str, Field(description="Where the rows of new tables lie: cpu, or cuda:N.")] = "cpu"
    durability: Annotated[
        str, Field(description="What acknowledged rows survive: process (its death), interval:SECONDS (and a loss of power, but for those), power.")
    ] = "process"
    max_workers: Annotated[int, Field(ge=2, le=4096, description="Calls that are served at once.")] = 128
    max_streams: Annotated[int, Field(ge=1, description="Long-lived streams among them; one more is refused. Below max_workers.")] = 48
    max_tables: Annotated[int, Field(ge=1, description="Tables that clients may create.")] = 256
    shared_memory_dir: Annotated[
        Path | None,
        Field(
            description="A folder that clients in other containers share with the server, such as /dev/shm: large batches go through files in it."
            " Unset: clients of this host, user and PID namespace share memory."
        ),
    ] = None
    grace_seconds: Annotated[float, Field(ge=0, le=3600, description="That running calls get to finish when the server is told to stop.")] = 5.0

    @field_validator("config")
    @classmethod
    def _config_is_there(cls, path: Path | None) -> Path | None:
        if path is not None and not path.is_file():
            raise ValueError(f"{path} is not a file")
        return path

    @field_validator("shared_memory_dir", mode="before")
    @classmethod
    def _empty_is_unset(cls, path: object) -> object:
        """As a compose file writes a variable that is not set."""
        return None if path == "" else path

    @field_validator("shared_memory_dir")
    @classmethod
    def _folder_is_there(cls, path: Path | None) -> Path | None:
        if path is not None and not os.access(path, os.W_OK | os.X_OK):
            raise ValueError(f"{path} is not a folder that this process can write to")
        return path

    @field_validator("address")
    @classmethod
    def _address_is_one(cls, address: str) -> str:
        host_port = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/]+):(\d{1,5})", address)
        if not re.fullmatch(r"unix:\S+", address) and not (host_port and int(host_port[2]) < 1 << 16):
            raise ValueError("must be HOST:PORT or unix:PATH")
        return address

    @field_validator("storing_device")
    @classmethod
    def _device_is_one(cls, name: str) -> str:
        if name == "cpu":
            return name
        import torch  # Here: it takes a second, and servers without a GPU do not need it to know their settings.

        try:
            return str(torch.device(name))
        except RuntimeError:
            raise ValueError("must be cpu or cuda:N") from None

    @field_validator("durability")
    @classmethod
    def _durability_is_one(cls, text: str) -> str:
        Durability.parse(text)
        return text

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

    @property
    def max_standing(self) -> int:
        """Calls that clients may hold open between single inserts and batches: half of the workers that streams leave."""
        return (self.max_workers - self.max_streams) // 2

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Code and command line, then the environment, then the TOML file."""
        path = init_settings().get("config") or os.environ.get(f"{ENV_PREFIX}CONFIG")
        sources = (init_settings, env_settings)
        return (*sources, TomlConfigSettingsSource(settings_cls, Path(path))) if path else sources
