"""Ways to servers on which answers are dropped, and which are cut: a shard that is lost, with what it stored, in a moment."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple

from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ReplayServer, ServerConfig

__all__ = ["Way", "Ways", "ways_to_servers"]


class Way:
    """A way to a server, on which the server's answers can be dropped, and which can be cut.

    Attributes:
        address: Where it begins.
        is_deaf: Whether answers are dropped.
        is_cut: Whether nobody comes through.
    """

    def __init__(self, server: str) -> None:
        self._server, self._sockets = server, set[socket.socket]()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.is_deaf = self.is_cut = False
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                if self.is_cut:
                    client.close()
                    continue
                host, _, port = self._server.rpartition(":")
                server = socket.create_connection((host, int(port)))
                self._sockets |= {client, server}
                for source, target, answers in ((client, server, False), (server, client, True)):
                    threading.Thread(target=self._pass_on, args=(source, target, answers), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, answers: bool) -> None:
        with source, suppress(OSError):
            while data := source.recv(1 << 16):
                if not (answers and self.is_deaf):
                    target.sendall(data)
            target.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """Ends what goes over it, and lets nobody through."""
        self.is_cut = True
        for each in tuple(self._sockets):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """It is as it was at first."""
        self.is_deaf = self.is_cut = False

    def close(self) -> None:
        """Ends it."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()


class Ways(NamedTuple):
    """The ways to some servers.

    Attributes:
        servers: The addresses of the servers themselves.
        ways: Those that clients go.
    """

    servers: Sequence[str]
    ways: Sequence[Way]

    @property
    def addresses(self) -> list[str]:
        """Where the ways begin."""
        return [way.address for way in self.ways]

    def stored(self, number: int, table: str) -> list[int]:
        """The field ``action`` of all rows of a server."""
        with RemoteReplayBuffer(self.servers[number], table=table) as direct:
            return direct.sample_all()["action"].tolist() if direct.state().size else []

    def all_stored(self, table: str) -> Counter[int]:
        """How often each ``action`` is stored, on whatever server."""
        return Counter(action for number in range(len(self.servers)) for action in self.stored(number, table))


@contextmanager
def ways_to_servers(count: int) -> Iterator[Ways]:
    """Ways to so many servers of this process."""
    with ExitStack() as running:
        servers = [running.enter_context(ReplayServer(ServerConfig(address="127.0.0.1:0"))).address for _ in range(count)]
        ways = [Way(server) for server in servers]
        for way in ways:
            running.callback(way.close)
        yield Ways(servers, ways)
