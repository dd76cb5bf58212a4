"""A checkpoint, and the answers that say how far it is while it is written."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait

from tdreplay.api import Checkpoint
from tdreplay.errors import CancelledError
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay_server.tables.table import Table

__all__ = ["checkpointed"]

REPORT_SECONDS = 0.5


class _Progress:
    """How far a checkpoint is, as the thread that writes it reports.

    Where the client is gone, the report raises an error, which ends the checkpoint.
    """

    def __init__(self) -> None:
        self.done = self.total = 0
        self.gone = threading.Event()

    def __call__(self, done: int, total: int) -> None:
        self.done, self.total = done, total
        if self.gone.is_set():
            raise CancelledError("the client of the checkpoint is gone")


def checkpointed(table: Table, name: str) -> Iterator[pb.CheckpointResponse]:
    """Writes a checkpoint in a thread of its own. Answers how far it is, twice a second, and at the end where it is."""
    progress = _Progress()
    with ThreadPoolExecutor(1, thread_name_prefix="tdreplay-checkpoint") as executor:
        work = executor.submit(table.checkpoint, name, progress=progress)
        try:
            while not wait([work], REPORT_SECONDS).done:
                yield pb.CheckpointResponse(bytes=progress.done, total_bytes=progress.total)
        finally:
            progress.gone.set()
        yield _finished(work.result())


def _finished(made: Checkpoint) -> pb.CheckpointResponse:
    return pb.CheckpointResponse(bytes=made.bytes, total_bytes=made.bytes, rows=made.rows, write_count=made.write_count, path=made.path)
