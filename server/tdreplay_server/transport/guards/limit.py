"""A limit of the server: what it is called, how much of it is used, and how often it refused something."""

from __future__ import annotations

import threading
from typing import NamedTuple

from tdreplay.server_status import Limit
from tdreplay_server.transport.call import Call

__all__ = ["Client", "Places", "Share", "client_of"]

LOCAL_HOSTS = ("unix", "ipv4:127.", "ipv6:[::1]", "ipv6:%5B::1%5D")


class Places:
    """So many of something that may be taken at a time. Any thread may take and give back, and none of it waits.

    Args:
        name: the setting that is the limit.
        most: the most that may be taken.
    """

    __slots__ = ("_lock", "_most", "_name", "_refused", "_used")

    def __init__(self, name: str, most: int) -> None:
        self._name, self._most, self._used, self._refused = name, most, 0, 0
        self._lock = threading.Lock()

    def take(self, number: int = 1) -> bool:
        """Takes so many. False: there is no room for them, and none is taken. One alone always has room, whatever its size."""
        with self._lock:
            if (self._used and self._used + number > self._most) or not self._most:
                return False
            self._used += number
            return True

    def give_back(self, number: int = 1) -> None:
        """Gives back what was taken."""
        with self._lock:
            self._used -= number

    def refuse(self) -> None:
        """Counts that something was refused."""
        with self._lock:
            self._refused += 1

    def used(self) -> Limit:
        """How much of it is used."""
        with self._lock:
            return Limit(name=self._name, limit=self._most, used=self._used, refused=self._refused)


class Client(NamedTuple):
    """Who counts as one client: a name, or a host.

    Attributes:
        key: the name of the caller's token or certificate, or the host that calls.
        anonymous: it has no name, and calls from this host. So it may be many that cannot be told apart.
    """

    key: str
    anonymous: bool


def client_of(call: Call) -> Client:
    """The client that makes a call."""
    if call.principal.name:
        return Client(call.principal.name, False)
    peer = call.peer
    return Client(peer.rpartition(":")[0], peer.startswith(LOCAL_HOSTS))


class Share:
    """So many of something that one client may take at a time. Any thread may take and give back, and none of it waits.

    Args:
        name: the setting that is the limit.
        most: the most of a client.
        anonymous: the most of all clients together that have no name and call from this host.
    """

    def __init__(self, name: str, most: int, anonymous: int) -> None:
        self._name, self._most, self._anonymous = name, most, anonymous
        self._taken: dict[str, int] = {}
        self._refused = 0
        self._lock = threading.Lock()

    def most_of(self, client: Client) -> int:
        """The most that a client may take."""
        return self._anonymous if client.anonymous else self._most

    def take(self, client: Client) -> bool:
        """Takes one. False: the client has as many as it may have, which counts as refused."""
        with self._lock:
            taken = self._taken.get(client.key, 0)
            if taken >= self.most_of(client):
                self._refused += 1
                return False
            self._taken[client.key] = taken + 1
            return True

    def give_back(self, client: Client) -> None:
        """Gives back one that was taken. Nothing is kept of a client that has none."""
        with self._lock:
            left = self._taken[client.key] - 1
            if left:
                self._taken[client.key] = left
            else:
                del self._taken[client.key]

    def used(self) -> Limit:
        """How much the client uses that uses most."""
        with self._lock:
            return Limit(name=self._name, limit=self._most, used=max(self._taken.values(), default=0), refused=self._refused)
