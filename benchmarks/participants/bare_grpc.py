"""The same bytes over bare gRPC, in plain messages, with no replay behind them: what a service costs that does nothing to save copies."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection

import grpc
from grpc.experimental import ChannelOptions

from benchmarks.measure import Report, Task, latency, throughput
from benchmarks.work import BATCH, Work, WrongRowsError

OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
BLOCK = 3 << 20
"""Bytes of a message: larger ones move more slowly."""


def main(task: Task) -> None:
    """Measures a stream of batches that are messages of zeros, and round trips that carry a row there."""
    work, report = Work(task.work), Report(task)
    options = [*OPTIONS, (ChannelOptions.SingleThreadedUnaryStream, 1)]
    with serving() as address, grpc.insecure_channel(address, options=options) as channel:
        size = work.row_bytes * BATCH
        stream: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream("/Bare/Stream")
        messages = stream(str(size).encode())
        report.speed("stream", BATCH, throughput(lambda: _take(messages, size), task.seconds))
        messages.cancel()
        take: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/Bare/Take")
        row, batch = bytes(work.row_bytes), bytes(size)
        report.speed("round trip", 1, latency(lambda: take(row), task.seconds))
        report.speed("add_batch", BATCH, throughput(lambda: take(batch), task.seconds))


def _take(messages: Iterator[bytes], size: int) -> None:
    taken = sum(len(next(messages)) for _ in range(-(-size // BLOCK)))
    if taken != size:
        raise WrongRowsError(f"{taken} of {size} bytes came")


@contextmanager
def serving() -> Iterator[str]:
    """A server process while the context is open: its address."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(there,), daemon=True)
    process.start()
    try:
        yield f"127.0.0.1:{here.recv()}"
    finally:
        process.kill()
        process.join()


def serve(pipe: Connection) -> None:
    """Serves until the process is ended."""
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "Stream": grpc.unary_stream_rpc_method_handler(_stream),
        "Take": grpc.unary_unary_rpc_method_handler(lambda *_: b""),
    }
    server = grpc.server(ThreadPoolExecutor(8), options=OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Bare", handlers),))
    pipe.send(server.add_insecure_port("127.0.0.1:0"))
    server.start()
    server.wait_for_termination()


def _stream(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
    size = int(request)
    blocks = [bytes(min(BLOCK, size - start)) for start in range(0, size, BLOCK)]
    while context.is_active():
        yield from blocks


if __name__ == "__main__":
    main(Task.from_command_line())
