"""A server and a client, which streams uniform batches for so many seconds as each line of the input says. They may be of an older tdreplay."""

from __future__ import annotations

import sys
from pathlib import Path

import tdreplay_server
from benchmarks.measure import throughput
from benchmarks.participants.service import fill
from benchmarks.participants.service_reads import PREFETCH
from benchmarks.participants.tensors import check_tensordicts
from benchmarks.work import BATCH, Live, Work
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ServerConfig, spawn_server


def main(name: str, checkout: Path) -> None:
    """Writes the seconds that a batch took, a line for each line of the input.

    Raises:
        ImportError: tdreplay is not that of `checkout`.
    """
    if not Path(tdreplay_server.__file__).resolve().is_relative_to(checkout.resolve()):
        raise ImportError(f"{tdreplay_server.__file__} is not in {checkout}")
    work = Work(name)
    config = ServerConfig(address="127.0.0.1:0", buffer_size=work.capacity)
    with spawn_server(config) as server, RemoteReplayBuffer(server.address, transport="grpc") as buffer:
        fill(buffer, work)
        with buffer.stream(BATCH, prefetch=PREFETCH[name]) as batches:
            check_tensordicts(work, Live(0, work.capacity), batches.__next__)
            for line in sys.stdin:
                print(throughput(batches.__next__, float(line)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
