"""A peer that is there and answers no pings: a process that stands still, or a network that swallows what is sent."""

from __future__ import annotations

import socket
import struct
import threading
import time
from contextlib import suppress

from tdreplay.errors import ReplayError
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ReplayServer, ServerConfig

SETTINGS, ACK = 4, 1
NOTICED = (25.0, 38.0)
"""Seconds: a ping after 20, and 10 for its answer. gRPC itself would wait for a minute."""


def frame(kind: int, flags: int) -> bytes:
    """An HTTP/2 frame without a payload, of the connection itself (RFC 9113, section 4.1)."""
    return struct.pack(">IBBI", 0, kind, flags, 0)[1:]


def seconds_until_closed(connection: socket.socket, greeting: bytes) -> float:
    """Greets, and then takes what comes without a word."""
    start = time.monotonic()
    connection.settimeout(90)
    connection.sendall(greeting + frame(SETTINGS, 0) + frame(SETTINGS, ACK))
    with suppress(ConnectionError):
        while connection.recv(1 << 16):
            pass
    return time.monotonic() - start


def test_a_peer_that_answers_no_pings_is_noticed_in_half_a_minute_by_both_ends():
    found = {}
    with ReplayServer(ServerConfig(address="127.0.0.1:0", buffer_size=5)) as server, socket.create_server(("127.0.0.1", 0)) as listener:

        def silent_client():
            host, _, port = server.address.rpartition(":")
            with socket.create_connection((host, int(port))) as connection:
                found["server"] = seconds_until_closed(connection, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")

        def silent_server():
            with listener.accept()[0] as connection:
                found["client"] = seconds_until_closed(connection, b"")
            listener.close()

        def client():
            with suppress(ReplayError), RemoteReplayBuffer(f"127.0.0.1:{listener.getsockname()[1]}", timeout=45):
                pass

        threads = [threading.Thread(target=work, daemon=True) for work in (silent_client, silent_server, client)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(100)
    assert NOTICED[0] < found["server"] < NOTICED[1]
    assert NOTICED[0] < found["client"] < NOTICED[1]
