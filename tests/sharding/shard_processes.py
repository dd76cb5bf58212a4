"""Servers that are shards, each a process with data and a port of its own."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from pathlib import Path

from children import Server, free_port, server_process
from tdreplay_server import ServerConfig

__all__ = ["Shards"]


class Shards:
    """Server processes with data, each on a port of its own, which are killed and started again."""

    def __init__(self, directory: Path, count: int) -> None:
        self.directory, self.running = directory, [ExitStack() for _ in range(count)]
        self.addresses = [f"127.0.0.1:{free_port()}" for _ in range(count)]
        self.servers: dict[int, Server] = {}
        self.lives = [0] * count
        for number in range(count):
            self.start(number)

    def start(self, number: int, *, empty: bool = False) -> None:
        self.lives[number] += empty
        place = self.directory / f"shard-{number}-{self.lives[number]}"
        self.servers[number] = self.running[number].enter_context(server_process(ServerConfig(address=self.addresses[number], data_dir=place)))

    def stop(self, number: int) -> None:
        """It stands still: what is sent to it is not answered."""
        os.kill(self.servers[number].pid, signal.SIGSTOP)

    def kill(self, number: int) -> None:
        self.servers[number].child.kill()
        self.running[number].close()

    def close(self) -> None:
        for running in self.running:
            running.close()
