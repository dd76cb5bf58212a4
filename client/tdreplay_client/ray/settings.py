"""What a cluster is started with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, SupportsIndex

from tdreplay.errors import InvalidArgumentError
from tdreplay.limits import DEFAULT_TABLE, MAX_SHARDS, check_choice, check_flag, check_whole
from tdreplay.table_config import TableConfig, TableRequest, check_limiter
from tdreplay_client.sharding.shares import share_of
from tdreplay_client.transport.access import TLS

__all__ = ["NAMESPACE", "PLACEMENTS", "ClusterSettings", "check_name", "check_shards", "directory_name", "group_name", "shard_name"]

NAMESPACE = "tdreplay"
"""Of the names of all actors: drivers of any namespace find them."""
PLACEMENTS = ("spread", "pack", "with_learner")
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
OWN_SETTINGS = {"config", "address", "data_dir", "cluster", "shard", "durability", "insecure", "tables", "buffer_size"}
"""Settings of a server that follow from the cluster's."""


@dataclass(frozen=True)
class ClusterSettings:
    """What a cluster is started with, checked. `ReplayCluster` says what each is; `table` is that of the whole buffer over so many `shards`."""

    name: str
    shards: int
    table: TableRequest
    data_dir: str
    resources: Mapping[str, float]
    placement: str
    durability: str
    host: str | None
    insecure: bool
    server: Mapping[str, Any]
    tls: TLS | bool | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    learner_node: str = ""

    @classmethod
    def of(
        cls,
        name: str,
        shards: int,
        table: TableConfig,
        data_dir: str,
        resources: Mapping[str, float] | None,
        placement: str,
        durability: str,
        host: str | None,
        insecure: bool,
        server: Mapping[str, Any] | None,
        tls: TLS | bool | None,
        token: str | None,
        learner_node: str,
    ) -> ClusterSettings:
        """The settings of somebody, checked.

        Raises:
            InvalidArgumentError: one breaks its rule.
        """
        return cls(
            check_name(name),
            shards,
            _table(table, shards),
            _data_dir(data_dir),
            _resources({"CPU": 1.0} if resources is None else resources),
            check_choice(placement, "placement", PLACEMENTS),
            durability,
            host,
            check_flag(insecure, "insecure"),
            _server(server or {}),
            tls,
            token,
            learner_node,
        )

    def table_of(self, number: int) -> TableRequest:
        """What the shard of this number makes."""
        return share_of(self.table, number, self.shards)

    @property
    def is_encrypted(self) -> bool:
        """Whether the servers have a certificate."""
        return "cert_file" in self.server

    def shown_by(self, tls: TLS | bool | None, token: str | None) -> ClusterSettings:
        """The same for a client that connects in this way; None: as is said already."""
        return replace(self, tls=self.tls if tls is None else tls, token=self.token if token is None else token)


def check_shards(shards: SupportsIndex) -> int:
    """A number of shards.

    Raises:
        InvalidArgumentError: there can be no so many.
    """
    return check_whole(shards, "shards", 1, MAX_SHARDS)


def check_name(name: str) -> str:
    """The name of a cluster.

    Raises:
        InvalidArgumentError: it is none.
    """
    if not isinstance(name, str) or NAME.fullmatch(name) is None:
        raise InvalidArgumentError(f"name ({name!r}) must be 1 to 64 letters, digits, '_', '-' and '.', and not begin with a '.'")
    return name


def directory_name(name: str) -> str:
    """The name of the actor that knows the shards of a cluster."""
    return f"tdreplay:{name}"


def shard_name(name: str, number: int | str) -> str:
    """The name of the actor of a shard."""
    return f"tdreplay:{name}:shard:{number}"


def group_name(name: str, number: int) -> str:
    """The name of the placement group whose first shard has this number."""
    return f"tdreplay:{name}:group:{number}"


def _table(table: TableConfig, shards: int) -> TableRequest:
    """What is asked of the whole buffer. Each of the shards can have its part of it."""
    if not isinstance(table, TableConfig):
        raise InvalidArgumentError(f"table ({table!r}) must be a TableConfig")
    asked = TableRequest.of(**{**vars(TableRequest.of_config(table)), "name": table.name or DEFAULT_TABLE})
    for place in {0, shards - 1}:  # The largest part and the smallest.
        check_limiter(share_of(asked, place, shards).config("cpu"))
    return asked


def _data_dir(data_dir: str) -> str:
    if not data_dir.startswith(("/", "~", "$")) or "\0" in data_dir:
        raise InvalidArgumentError(f"data_dir ({data_dir!r}) must be an absolute path on each node: begin it with /, ~ or a $VARIABLE of the nodes")
    return data_dir


def _resources(resources: Mapping[str, float]) -> dict[str, float]:
    found = {str(name): float(value) for name, value in resources.items()}
    wrong = next((f"{name} ({value})" for name, value in found.items() if not value > 0), None)
    if wrong or not found:
        raise InvalidArgumentError(f"resources: {wrong or 'nothing is named'}, and each must be above 0: what one shard takes of its node")
    return found


def _server(server: Mapping[str, Any]) -> dict[str, Any]:
    own = sorted(OWN_SETTINGS & server.keys())
    if own:
        raise InvalidArgumentError(f"server: {own[0]} follows from the cluster's own settings, and cannot be given")
    return dict(server)
