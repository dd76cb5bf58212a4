"""tdreplay: a server process, and one client over TCP on loopback; where batches are large, another one over shared memory too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace

from benchmarks.measure import Report, Task
from benchmarks.participants.service import Service, fill
from benchmarks.participants.service_inserts import measure_inserts
from benchmarks.participants.service_reads import measure_single_batches, measure_streams
from benchmarks.plan import SHARED_MEMORY
from benchmarks.work import Work
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ServerConfig, spawn_server

SHARED = ("image",)
"""Smaller batches travel over gRPC, whatever the transport."""


def main(task: Task) -> None:
    """Reads over both transports, and then inserts over both."""
    work = Work(task.work)
    config = ServerConfig(address="127.0.0.1:0", buffer_size=work.capacity)
    with spawn_server(config) as server, RemoteReplayBuffer(server.address, transport="grpc") as buffer:
        fill(buffer, work)
        service = Service(task.seconds, work, Report(task), buffer, server.pid)
        measure_streams(service)
        measure_single_batches(service)
        shares: AbstractContextManager[Service | None] = _sharing(task, service) if work.name in SHARED else nullcontext()
        with shares as shared:
            if shared:
                measure_streams(shared)
                measure_single_batches(shared)
            measure_inserts(service)
            if shared:
                measure_inserts(shared)


@contextmanager
def _sharing(task: Task, service: Service) -> Iterator[Service]:
    with RemoteReplayBuffer(service.buffer.address, transport="shared_memory") as buffer:
        yield replace(service, report=Report(task, SHARED_MEMORY), buffer=buffer, shared=True)


if __name__ == "__main__":
    main(Task.from_command_line())
