"""A table far larger than the memory that the server may use for it."""

from __future__ import annotations

import psutil
import pytest
import torch
from tensordict import TensorDict

from children import server_process
from tdreplay.block import decode
from tdreplay.framing import split
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay_client import RemoteReplayBuffer
from tdreplay_client.transport.connection import Connection
from tdreplay_server import ServerConfig

GIB = 1 << 30
MIB = 1 << 20
ROW = MIB


def private_bytes(pid: int) -> int:
    """Memory that is the process's own: what it maps of files, the page cache, does not count."""
    return psutil.Process(pid).memory_full_info().uss - file_pages(pid)


def file_pages(pid: int) -> int:
    """Bytes of mapped files that only this process maps, which `uss` counts too."""
    return sum(area.private_clean + area.private_dirty for area in psutil.Process(pid).memory_maps() if area.path.endswith(".memmap"))


@pytest.mark.timeout(300)
def test_sample_all_of_a_gib_takes_no_memory_of_the_server():
    rows = GIB // ROW
    with server_process(ServerConfig(address="127.0.0.1:0", buffer_size=rows)) as server:
        with RemoteReplayBuffer(server.address, timeout=60) as buffer:
            part = 64
            for start in range(0, rows, part):
                number = torch.arange(start, start + part)
                buffer.add_batch(TensorDict({"n": number, "x": number.to(torch.uint8).unsqueeze(1).expand(part, ROW)}, [part]))
            before, most, seen = private_bytes(server.pid), 0, 0
            # The batch is 1 GiB in the client too: here its blocks are looked at, and let go.
            connection = Connection(server.address, 60)
            for message in connection.stream("SampleAll", pb.SampleAllRequest(table="default")):
                head, memory = split(message, pb.SampleAllResponse)
                block = decode(memory)
                assert head.first_row == seen
                assert block.columns["n"].tolist() == list(range(seen, seen + block.rows))
                assert torch.equal(block.columns["x"][:, -1], block.columns["n"].to(torch.uint8))
                seen += block.rows
                if seen % 64 < block.rows:
                    most = max(most, private_bytes(server.pid))
            connection.close()
            assert seen == rows
            grown = most - before
            print(f"the server grew by {grown / MIB:.1f} MiB while it streamed {seen * ROW / GIB:.1f} GiB")
            assert grown < 128 * MIB
