"""The shards of a buffer: how they are found, and what must hold of them together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from tdreplay.errors import InvalidArgumentError, ServerUnavailableError
from tdreplay.shard_ids import MAX_SHARDS
from tdreplay_client.sharding.shard import Shard, ShardPlace
from tdreplay_client.transport.addresses import check_target

__all__ = ["Directory", "FixedDirectory", "ShardSet", "check_places"]

T = TypeVar("T")
MOST_THREADS = 64
"""The most shards that are asked at once."""


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


class ShardSet:
    """The shards that a buffer uses now. Which they are changes when a cluster grows or shrinks.

    Attributes:
        version: Rises with each such change. Whoever uses shards for longer than a call looks whether it is still the same.

    Args:
        directory: Says where they are.
        opened: Makes a shard of its place, its number among them, and how many there are. It does not connect.
    """

    def __init__(self, directory: Directory, opened: Callable[[ShardPlace, int, int], Shard]) -> None:
        self._directory, self._opened = directory, opened
        self._threads = ThreadPoolExecutor(MOST_THREADS, thread_name_prefix="tdreplay-shard")
        self._changing = threading.Lock()
        self.version = 0
        places = directory.places()
        self._shards: tuple[Shard, ...] = tuple(opened(place, number, len(places)) for number, place in enumerate(places))

    def __iter__(self) -> Iterator[Shard]:
        return iter(self._shards)

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, place: int) -> Shard:
        return self._shards[place]

    def place_of(self, number: int) -> int | None:
        """The place among the shards of the one with this number; None: there is none."""
        return next((place for place, shard in enumerate(self._shards) if shard.number == number), None)

    def each(self, call: Callable[[Shard], T], shards: Iterable[Shard] | None = None) -> list[T]:
        """What a call gives for each of the shards, all of which are asked at once, in their order.

        Raises:
            ReplayError: what the first of them that failed raised, after all have answered.
        """
        chosen = list(self._shards if shards is None else shards)
        if len(chosen) == 1:
            return [call(chosen[0])]
        waiting = [self._threads.submit(call, shard) for shard in chosen]
        errors = [error for error in (future.exception() for future in waiting) if error is not None]
        if errors:
            raise errors[0]
        return [future.result() for future in waiting]

    def tried(self, call: Callable[[Shard], T], shards: Iterable[Shard] | None = None) -> list[T | ServerUnavailableError]:
        """As `each`, but where a shard is lost its error stands in place of what it would give."""

        def safe(shard: Shard) -> T | ServerUnavailableError:
            try:
                return call(shard)
            except ServerUnavailableError as error:
                return error

        return self.each(safe, shards)

    def close(self) -> None:
        """Closes the connections to all."""
        for shard in self._shards:
            shard.close()
        self._threads.shutdown(wait=False)
