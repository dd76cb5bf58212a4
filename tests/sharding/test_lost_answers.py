"""A shard that stored rows whose acknowledgement never came: its writer moves, and sends those rows to no other shard."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from contextlib import ExitStack, suppress

from conftest import rows
from tdreplay_client import RemoteReplayBuffer
from tdreplay_client.sharding.buffer import ShardedReplayBuffer
from tdreplay_server import ReplayServer, ServerConfig


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


def test_rows_whose_acknowledgement_was_lost_are_stored_once(table):
    with ExitStack() as running:
        servers = [running.enter_context(ReplayServer(ServerConfig(address="127.0.0.1:0"))).address for _ in range(2)]
        ways = [Way(server) for server in servers]
        for way in ways:
            running.callback(way.close)
        options = {"table": table, "buffer_size": 10_000, "timeout": 60, "transport": "grpc", "on_loss": "degrade"}
        buffer = running.enter_context(ShardedReplayBuffer([way.address for way in ways], **options))
        with buffer.writer(flush_rows=4) as writer:
            for number in range(40):
                writer.append(rows(1, number)[0])
            writer.flush()
            first, deadline = writer.shard, time.monotonic() + 30
            ways[first].is_deaf = True
            for number in range(40, 60):
                writer.append(rows(1, number)[0])
            with RemoteReplayBuffer(servers[first], table=table) as direct:
                while direct.state().size < 44:  # Stored, and not acknowledged.
                    assert time.monotonic() < deadline
            ways[first].cut()
            count = 60
            while writer.shard == first:
                writer.append(rows(1, count)[0])
                count += 1
                time.sleep(0.005)  # It is given up after a second.
                assert time.monotonic() < deadline
            ways[first].mend()
        found: Counter[int] = Counter()
        for server in servers:
            with RemoteReplayBuffer(server, table=table) as direct:
                found.update(direct.sample_all()["action"].tolist())
        assert found == dict.fromkeys(range(count), 1)
