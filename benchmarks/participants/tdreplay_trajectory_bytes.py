"""tdreplay: the bytes that a transition takes on the disk and in the server's memory, as a step and as a row of both stacks."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import psutil

from benchmarks.measure import Report, Task
from benchmarks.participants.played import ENVS, fill_rows, fill_steps
from benchmarks.play import LENGTH, Play
from benchmarks.work import Live
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ServerConfig, spawn_server

Fill = Callable[[RemoteReplayBuffer, Play, Live], None]


def main(task: Task) -> None:
    """Fills a table of each layout with so many steps as the task's variant says."""
    play = Play(task.work, ENVS)
    live = Live(0, play.whole(int(task.variant)))
    layouts: dict[str, tuple[Fill, int]] = {"rows": (fill_rows, live.size), "steps": (fill_steps, play.rows_of(live.size))}
    with tempfile.TemporaryDirectory() as directory, spawn_server(ServerConfig(address="127.0.0.1:0", data_dir=Path(directory))) as server:
        few = Live(0, play.whole(LENGTH * ENVS))
        for name, (fill, _) in layouts.items():  # What a server takes once for all tables comes before the first look.
            with _table(server.address, f"{name}-first", few.size) as buffer:
                fill(buffer, play, few)
                buffer.sample_all()
        for name, (fill, rows) in layouts.items():
            disk, memory = _disk_bytes(Path(directory)), _memory_bytes(server.pid)
            with _table(server.address, name, rows) as buffer:
                fill(buffer, play, live)
                buffer.sample_all()  # Files that are mapped count in memory when they were read.
                Report(task).memory(f"disk, {name}", (_disk_bytes(Path(directory)) - disk) // live.size)
                Report(task).memory(f"memory, {name}", (_memory_bytes(server.pid) - memory) // live.size)


def _table(address: str, name: str, rows: int) -> RemoteReplayBuffer:
    return RemoteReplayBuffer(address, table=name, buffer_size=rows, trajectories=name.startswith("steps"), transport="grpc")


def _disk_bytes(directory: Path) -> int:
    """That all files below it take."""
    return sum(path.stat().st_blocks for path in directory.rglob("*") if path.is_file()) * 512


def _memory_bytes(pid: int) -> int:
    """That are resident: mapped files too."""
    return int(psutil.Process(pid).memory_info().rss)


if __name__ == "__main__":
    main(Task.from_command_line())
