"""A running tdreplay server, its client, and what is to be done with them."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.measure import Report
from benchmarks.participants.tensors import parts
from benchmarks.work import Live, Work
from tdreplay_client import RemoteReplayBuffer

__all__ = ["Service", "fill"]


@dataclass(frozen=True)
class Service:
    """What is measured.

    Attributes:
        seconds: that each figure may take.
        work: the rows.
        report: takes the figures.
        buffer: the client; its table is full of the rows ``[0, capacity)``.
        pid: of the server.
        shared: whether streams must use shared memory.
    """

    seconds: float
    work: Work
    report: Report
    buffer: RemoteReplayBuffer
    pid: int
    shared: bool = False

    @property
    def live(self) -> Live:
        """The rows that the table is filled with."""
        return Live(0, self.work.capacity)


def fill(buffer: RemoteReplayBuffer, work: Work) -> None:
    """Stores the rows ``[0, capacity)``."""
    for part in parts(work, work.capacity):
        buffer.add_batch(part)
