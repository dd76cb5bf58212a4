"""The memory that clients can cost a server beside the rows: a sum whose terms follow from the limits.

What one of each thing costs was measured on Linux with grpcio 1.85, by `tests/floods/test_budget.py`, and rounded up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tdreplay_server.durability.ledger import MAX_WRITERS
from tdreplay_server.transport import health, reflection
from tdreplay_server.transport.guards.running import SPARE_THREADS
from tdreplay_server.transport.server_limits import ServerLimits
from tdreplay_server.transport.shared_memory import TOTAL_SHARED_BYTES

__all__ = ["FRAME_BYTES", "WINDOW_BYTES", "MemoryBudget", "Term", "memory_budget"]

CONNECTION_BYTES = 64 << 10
"""Of an open connection: 27 KiB measured without TLS."""
CALL_BYTES = 128 << 10
"""Of an open call with its thread: 93 KiB measured of a stream that has a query and shares a connection with 50 others."""
WINDOW_BYTES = 256 << 10
"""What a client may send of a message before the server asks for it: HTTP/2's flow control. gRPC would let it grow to 4 MiB a call."""
UNREAD_BYTES = 2 * WINDOW_BYTES
"""Of a call that fills its window: gRPC keeps the bytes in buffers that are larger than they are. 508 KiB measured, with its connection."""
FRAME_BYTES = 1 << 20
"""The largest HTTP/2 frame that the server takes. Of a message of megabytes, few large frames cost less time than many small ones."""
WRITER_BYTES = 16 << 10
"""Of a writer that a table remembers, with its last 64 numbers."""
MOST_LOOKS = 64
"""Calls that look at the server which run at once, beside all others."""


class Term(NamedTuple):
    """A term of the sum.

    Attributes:
        name: what costs memory.
        number: how many there may be at once.
        each: the bytes of one.
    """

    name: str
    number: int
    each: int

    @property
    def size(self) -> int:
        """The bytes of all."""
        return self.number * self.each


class MemoryBudget(NamedTuple):
    """The memory that clients can cost.

    Attributes:
        unknown: what a peer can cost that is not known: on a server that asks who calls, one without a valid token or certificate.
        known: what clients can cost on top of it that may call.
    """

    unknown: tuple[Term, ...]
    known: tuple[Term, ...]

    @property
    def unknown_bytes(self) -> int:
        """What peers can cost that are not known."""
        return _sum(self.unknown)

    @property
    def size(self) -> int:
        """What all peers together can cost."""
        return _sum(self.unknown) + _sum(self.known)

    def described(self) -> dict[str, str]:
        """The terms, each as a product, in MiB."""
        return {term.name: f"{term.number}x{term.each / (1 << 20):.3g}" for term in (*self.unknown, *self.known)}


def memory_budget(limits: ServerLimits, connections: int) -> MemoryBudget:
    """The budget that follows from these limits.

    Args:
        limits: the limits.
        connections: how many there may be: the system may allow fewer than the setting.
    """
    threads = limits.max_workers + SPARE_THREADS
    beside = health.MOST_CALLS + reflection.MOST_CALLS + MOST_LOOKS + 3 * SPARE_THREADS
    return MemoryBudget(
        unknown=(
            Term("connections", connections, CONNECTION_BYTES + limits.max_metadata_bytes),
            Term("calls", threads + beside, CALL_BYTES),
            Term("unread", threads + beside, UNREAD_BYTES),
        ),
        known=(
            Term("in_flight", 2, limits.max_bytes_in_flight),
            Term("half_received", limits.max_workers, limits.max_message_bytes),
            Term("writers", limits.max_tables * MAX_WRITERS, WRITER_BYTES),
            Term("shared_memory", 1, TOTAL_SHARED_BYTES),
        ),
    )


def _sum(terms: Sequence[Term]) -> int:
    return sum(term.size for term in terms)
