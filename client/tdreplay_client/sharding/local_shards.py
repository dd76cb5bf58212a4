"""Which shards are on this host."""

from __future__ import annotations

import socket
from contextlib import suppress
from functools import lru_cache

from tdreplay_client.transport.addresses import is_here, place_of

__all__ = ["is_on_this_host"]


@lru_cache(maxsize=1 << 14)
def is_on_this_host(address: str) -> bool:
    """Whether an address is one of this host's: a name is looked up, once. One that cannot be looked up is not."""
    return is_here(address) or any(_is_own(family, host) for family, host in _looked_up(place_of(address)[0]))


def _looked_up(host: str) -> list[tuple[int, str]]:
    with suppress(OSError):
        return [(family, str(found[0])) for family, _, _, _, found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    return []


def _is_own(family: int, host: str) -> bool:
    """Whether a socket of this host can have the address."""
    with socket.socket(family, socket.SOCK_STREAM) as probe, suppress(OSError):
        probe.bind((host, 0))
        return True
    return False
