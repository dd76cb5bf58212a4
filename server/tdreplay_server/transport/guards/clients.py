"""The guard that knows who is connected: which calls each client has open, and what it sent and got."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from urllib.parse import unquote

from tdreplay.server_status import ConnectedClient
from tdreplay_server.access.principal import Principal
from tdreplay_server.transport.call import Call, Request
from tdreplay_server.transport.guards.guard import Answer, Proceed

__all__ = ["Clients"]

MOST_CLIENTS = 4096
KEPT_SECONDS = 60.0

Key = tuple[str, str]


class Traffic:
    """What came and went: in one call, or in all of a client's calls that ended."""

    __slots__ = ("bytes_received", "bytes_sent", "messages_received", "messages_sent", "method")

    def __init__(self, method: str = "") -> None:
        self.method = method
        self.messages_received = self.bytes_received = self.messages_sent = self.bytes_sent = 0

    def add(self, other: Traffic) -> None:
        """Adds that of another call."""
        self.messages_received += other.messages_received
        self.bytes_received += other.bytes_received
        self.messages_sent += other.messages_sent
        self.bytes_sent += other.bytes_sent


class Client:
    """One client: its open calls, and the sum of those that ended."""

    __slots__ = ("ended", "idle_since", "open", "principal", "since")

    def __init__(self, principal: Principal) -> None:
        self.principal, self.since, self.idle_since = principal, time.monotonic(), 0.0
        self.open: set[Traffic] = set()
        self.ended = Traffic()

    def described(self, peer: str, now: float) -> ConnectedClient:
        """What the status says of it."""
        total = Traffic()
        for traffic in (self.ended, *self.open):
            total.add(traffic)
        return ConnectedClient(
            peer=_readable(peer),
            name=self.principal.name,
            roles=tuple(sorted(role.value for role in self.principal.roles)),
            open_calls=dict(sorted(Counter(traffic.method for traffic in self.open).items())),
            connected_seconds=now - self.since,
            messages_received=total.messages_received,
            bytes_received=total.bytes_received,
            messages_sent=total.messages_sent,
            bytes_sent=total.bytes_sent,
        )


class Clients:
    """Knows the clients by their address and name. It stands behind the guard that asks for names: whoever has none is not counted.

    A call counts its messages in an object of its own, which one thread reads and one answers, so no message takes a lock.

    Args:
        most: clients that are known at once. Of more, those without an open call are forgotten first, the longest idle before the others.
        kept_seconds: how long a client without an open call is known. A connection that is closed is not seen: its calls end, that is all.
    """

    def __init__(self, most: int = MOST_CLIENTS, kept_seconds: float = KEPT_SECONDS) -> None:
        self._most, self._kept_seconds = most, kept_seconds
        self._lock = threading.Lock()
        self._clients: dict[Key, Client] = {}
        self._idle: dict[Key, None] = {}  # Those without an open call, in the order in which they became idle.

    def __call__(self, requests: Iterator[Request], call: Call, proceed: Proceed) -> Iterator[Answer]:
        """Counts the call, and what comes and goes in it."""
        key, traffic = (call.peer, call.principal.name), Traffic(call.method)
        self._begin(key, call.principal, traffic)
        try:
            for answer in proceed(_received(requests, traffic), call):
                traffic.messages_sent += 1
                traffic.bytes_sent += len(answer) if isinstance(answer, bytes) else answer.ByteSize()
                yield answer
        finally:
            self._end(key, traffic)

    def _begin(self, key: Key, principal: Principal, traffic: Traffic) -> None:
        with self._lock:
            client = self._clients.get(key) or self._new(key, principal)
            if client is not None:
                client.principal = principal  # Its roles may be others than before.
                client.open.add(traffic)
                self._idle.pop(key, None)

    def _new(self, key: Key, principal: Principal) -> Client | None:
        """A client that was not known; None where there is no room for it."""
        self._forget_old(time.monotonic())
        if len(self._clients) >= self._most and self._idle:
            self._forget(next(iter(self._idle)))
        if len(self._clients) >= self._most:
            return None
        client = self._clients[key] = Client(principal)
        return client

    def _end(self, key: Key, traffic: Traffic) -> None:
        with self._lock:
            client = self._clients.get(key)
            if client is None or traffic not in client.open:
                return  # There was no room for it.
            client.open.discard(traffic)
            client.ended.add(traffic)
            if not client.open:
                client.idle_since = time.monotonic()
                self._idle[key] = None

    def _forget_old(self, now: float) -> None:
        while self._idle:
            oldest = next(iter(self._idle))
            if now - self._clients[oldest].idle_since <= self._kept_seconds:
                return
            self._forget(oldest)

    def _forget(self, key: Key) -> None:
        del self._idle[key], self._clients[key]

    def connected(self) -> tuple[ConnectedClient, ...]:
        """The clients, by their address. Those whose last call ended more than a minute ago are forgotten."""
        now = time.monotonic()
        with self._lock:
            self._forget_old(now)
            found = sorted(self._clients.items(), key=lambda item: item[0])
        return tuple(self._described(peer, client, now) for (peer, _), client in found)

    def _described(self, peer: str, client: Client, now: float) -> ConnectedClient:
        with self._lock:  # For each one anew: calls do not wait until all of them are described.
            return client.described(peer, now)


def _received(requests: Iterator[Request], traffic: Traffic) -> Iterator[Request]:
    for request in requests:
        traffic.messages_received += 1
        traffic.bytes_received += request.size
        yield request


def _readable(peer: str) -> str:
    """A peer of gRPC's, ``ipv4:127.0.0.1:5000`` or ``ipv6:%5B::1%5D:5000``, as an address is written; ``unix`` of a Unix socket."""
    kind, _, address = unquote(peer).partition(":")
    return kind if kind == "unix" else address
