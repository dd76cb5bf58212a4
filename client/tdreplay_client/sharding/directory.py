"""Where the shards of a buffer are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from tdreplay.errors import InvalidArgumentError
from tdreplay.limits import MAX_SHARDS
from tdreplay_client.sharding.shard import ShardPlace
from tdreplay_client.transport.addresses import check_target

__all__ = ["Directory", "FixedDirectory", "as_directory", "check_places"]


class Directory(Protocol):
    """Says where the shards of a cluster are."""

    def places(self) -> Sequence[ShardPlace]:
        """Those that there are now, by number. It may ask others, and takes some seconds at most.

        Raises:
            ReplayError: they cannot be found out.
        """


class FixedDirectory:
    """Shards at addresses that never change: the first one is shard 0, and so on.

    Raises:
        InvalidArgumentError: there is no address, one is there twice, or one is none.
    """

    def __init__(self, addresses: Iterable[str]) -> None:
        if isinstance(addresses, str):
            raise InvalidArgumentError(f"addresses ({addresses!r}) must be a list of addresses, one for each shard")
        self._places = check_places([ShardPlace(number, check_target(address)) for number, address in enumerate(addresses)])

    def places(self) -> Sequence[ShardPlace]:
        """Those of the addresses."""
        return self._places


def as_directory(addresses: Iterable[str] | Directory) -> Directory:
    """What says where the shards are: the addresses, or the directory that was given.

    Raises:
        InvalidArgumentError: it is neither.
    """
    if isinstance(addresses, Iterable):
        return FixedDirectory(addresses)
    if not callable(getattr(addresses, "places", None)):
        raise InvalidArgumentError(f"addresses ({addresses!r}) must be a list of addresses, or a directory of shards")
    return addresses


def check_places(places: Sequence[ShardPlace]) -> Sequence[ShardPlace]:
    """These places, where they can be the shards of one buffer.

    Raises:
        InvalidArgumentError: there is none or there are too many, or two have the same address or the same number.
    """
    if not 1 <= len(places) <= MAX_SHARDS:
        raise InvalidArgumentError(f"the number of shards ({len(places)}) must be from 1 to {MAX_SHARDS}")
    for name in ("address", "number"):
        values: list[Any] = [getattr(place, name) for place in places]
        twice = next((value for value in values if values.count(value) > 1), None)
        if twice is not None:
            raise InvalidArgumentError(f"{name} ({twice}) is there twice: each shard has its own")
    return sorted(places, key=lambda place: place.number)
