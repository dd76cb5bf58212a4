"""A way to a server on which the bytes are counted: what does not come by went through shared memory."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


class Relay:
    """Listens on this host, and passes on what comes to a server, and back what the server says.

    Attributes:
        address: where it listens.
        sent: bytes that went to the server.
    """

    def __init__(self, listener: socket.socket, server: str) -> None:
        self._listener, self._server = listener, server
        self.address = f"127.0.0.1:{listener.getsockname()[1]}"
        self.sent = 0

    def run(self) -> None:
        """Serves until the listener is shut down."""
        with suppress(OSError):
            while True:
                self._connect(self._listener.accept()[0])

    def _connect(self, client: socket.socket) -> None:
        host, _, port = self._server.rpartition(":")
        server = socket.create_connection((host, int(port)))
        for source, target, count in ((client, server, self._count), (server, client, lambda _: None)):
            threading.Thread(target=_pass_on, args=(source, target, count), daemon=True).start()

    def _count(self, sent: int) -> None:
        self.sent += sent


def _pass_on(source: socket.socket, target: socket.socket, count: Callable[[int], object]) -> None:
    """Until one of them ends, which ends both."""
    with source, suppress(OSError):
        while data := source.recv(1 << 16):
            count(len(data))
            target.sendall(data)
        target.shutdown(socket.SHUT_RDWR)


@contextmanager
def relayed(server: str) -> Iterator[Relay]:
    """A relay to the server at an address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        relay = Relay(listener, server)
        thread = threading.Thread(target=relay.run)
        thread.start()
        yield relay
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
