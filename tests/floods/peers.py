"""Peers that speak HTTP/2 by hand, and not always well: what a hostile client can send that gRPC's own clients cannot."""

from __future__ import annotations

import socket
import struct
import time
from contextlib import suppress

import hpack

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, WINDOW_UPDATE, CONTINUATION = 0, 1, 4, 8, 9
END_STREAM, END_HEADERS = 1, 4
ADD = "/tdreplay.v1.ReplayBufferService/Add"
FRAME = 16384


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """An HTTP/2 frame."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def headers(path: str, *more: tuple[str, str]) -> bytes:
    """The header block of a call."""
    usual = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "x"), ("te", "trailers"), ("content-type", "application/grpc")]
    return hpack.Encoder().encode([*usual, *more])


def message(size: int, sent: bytes = b"", *, compressed: bool = False) -> bytes:
    """The beginning of a message of gRPC, which says that it has `size` bytes."""
    return struct.pack(">BI", compressed, size) + sent


class Peer:
    """A connection to a server.

    Args:
        address: of the server.
        speaks: whether it sends HTTP/2's preface.
    """

    def __init__(self, address: str, *, speaks: bool = True) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=10)
        self._last = -1
        if speaks:
            self.send(PREFACE + frame(SETTINGS, 0, 0, b""))

    def send(self, data: bytes) -> bool:
        """Sends as much as the server takes within some seconds. False: it took not all, or closed the connection."""
        try:
            self.socket.sendall(data)
        except OSError:
            return False
        return True

    def call(self, path: str, *more: tuple[str, str]) -> int:
        """Begins a call, and gives the number of its stream."""
        self._last += 2
        self.send(frame(HEADERS, END_HEADERS, self._last, headers(path, *more)))
        return self._last

    def body(self, stream: int, data: bytes) -> bool:
        """Sends data of a call, without a look at the window that the server gave."""
        return all(self.send(frame(DATA, 0, stream, data[at : at + FRAME])) for at in range(0, len(data), FRAME))

    def received(self, seconds: float = 5.0, until: bytes = b"grpc-status") -> bytes:
        """What came from the server, up to some bytes in it, or as long as it sends within some seconds. Empty: it closed the connection."""
        found, end = b"", time.monotonic() + seconds
        with suppress(OSError):
            while until not in found and time.monotonic() < end:
                self.socket.settimeout(max(0.01, end - time.monotonic()))
                chunk = self.socket.recv(1 << 16)
                if not chunk:
                    break
                found += chunk
        self.socket.settimeout(10)
        return found

    def is_closed(self, seconds: float) -> bool:
        """Whether the server closes the connection within some seconds."""
        end = time.monotonic() + seconds
        self.socket.settimeout(seconds)
        try:
            while time.monotonic() < end:
                if not self.socket.recv(1 << 16):
                    return True
        except TimeoutError:
            return False
        except OSError:
            return True
        return False

    def close(self) -> None:
        """Closes the connection."""
        self.socket.close()
