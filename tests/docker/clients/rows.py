"""Numbered rows: a reader can tell who pushed them, and whether they are whole. And the buffer that they go to."""

from __future__ import annotations

import os
from typing import Any, TypeAlias

import torch
from tensordict import TensorDict

from tdreplay_client import RemoteReplayBuffer, ShardedReplayBuffer

Buffer: TypeAlias = RemoteReplayBuffer | ShardedReplayBuffer

WIDTH = int(os.environ["WIDTH"])
CAPACITY = int(os.environ["CAPACITY"])
TIMEOUT = float(os.environ["TIMEOUT"])
PAUSE = float(os.environ["PAUSE"])
ADDRESS = os.environ["TDREPLAY_ADDRESS"]
ADDRESSES = os.environ.get("ADDRESSES", "")
"""Of shards, with commas. Empty: there is one server."""
TABLE = "numbered"


def opened(**arguments: Any) -> Buffer:
    """The table: of one server, or over the shards. Then it goes on without a shard that is lost."""
    if ADDRESSES:
        return ShardedReplayBuffer(ADDRESSES.split(","), table=TABLE, timeout=TIMEOUT, on_loss="degrade", **arguments)
    return RemoteReplayBuffer(ADDRESS, table=TABLE, timeout=TIMEOUT, **arguments)


def rows(actor: int, first: int, count: int) -> TensorDict:
    """The rows of an actor from its number `first` on."""
    actors, numbers = torch.full((count,), actor), torch.arange(first, first + count)
    return TensorDict({"actor": actors, "number": numbers, "payload": _payload(actors, numbers)}, [count])


def wrong(batch: TensorDict) -> int:
    """How many rows of a batch are not as they were pushed."""
    return int((batch["payload"] != _payload(batch["actor"], batch["number"])).any(1).sum())


def _payload(actors: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    return ((actors + numbers) % 65521).float()[:, None] + torch.arange(WIDTH)
