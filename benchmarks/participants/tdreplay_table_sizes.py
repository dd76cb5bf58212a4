"""tdreplay: the stream of a table of 10^4 rows, and that of one of 10^7."""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks.measure import Report, Task, throughput
from benchmarks.participants.service_reads import PREFETCH
from benchmarks.participants.tensors import check_tensordicts, parts
from benchmarks.work import BATCH, Live, Work
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ServerConfig, spawn_server

SIZES = {"stream of 10^4 rows": 10**4, "stream of 10^7 rows": 10**7}


def main(task: Task) -> None:
    """Fills both tables, and then measures both streams, one after the other."""
    work, report = Work(task.work), Report(task)
    with spawn_server(ServerConfig(address="127.0.0.1:0")) as server, ExitStack() as stack:
        tables = [(op, _table(stack, server.address, work, size)) for op, size in SIZES.items()]
        for op, buffer in tables:
            with buffer.stream(BATCH, prefetch=PREFETCH[work.name]) as batches:
                report.speed(op, BATCH, throughput(batches.__next__, task.seconds))
                check_tensordicts(work, Live(0, SIZES[op]), batches.__next__)


def _table(stack: ExitStack, address: str, work: Work, size: int) -> RemoteReplayBuffer:
    buffer = stack.enter_context(RemoteReplayBuffer(address, table=f"rows-{size}", buffer_size=size, transport="grpc"))
    for part in parts(work, size):
        buffer.add_batch(part)
    return buffer


if __name__ == "__main__":
    main(Task.from_command_line())
