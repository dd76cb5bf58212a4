"""The server: tables, their service, and the socket that it listens on."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

import grpc
import torch
from typing_extensions import Self

from tdreplay.errors import ServerUnavailableError, StorageError
from tdreplay.limits import message_options
from tdreplay.processes import Owner, keep_in_forks
from tdreplay.v1 import replay_buffer_pb2
from tdreplay_server.config import ServerConfig
from tdreplay_server.storage.rows import check_device
from tdreplay_server.system.descriptors import connection_limit
from tdreplay_server.system.logs import log
from tdreplay_server.tables.registry import Tables
from tdreplay_server.transport.call_threads import CallThreads
from tdreplay_server.transport.calls import Calls
from tdreplay_server.transport.health import Health
from tdreplay_server.transport.listening import check_free
from tdreplay_server.transport.service import ReplayBufferService
from tdreplay_server.transport.shared_memory import SharedMemory
from tdreplay_server.transport.stream_slots import StreamSlots
from tdreplay_server.transport.wire import Handlers

__all__ = ["ReplayServer"]

SERVICE = replay_buffer_pb2.DESCRIPTOR.services_by_name["ReplayBufferService"]


class ReplayServer:
    """A replay buffer server in this process. It listens from `start` (or ``with``) to `stop`. A fork of the process has none.

    Args:
        config: its settings; None: the defaults.
        on_failure: called once, from a thread of its own, when the disk failed: the server is to be stopped then, and may be stopped by it. It
            acknowledges nothing more.

    >>> with ReplayServer(ServerConfig(address="127.0.0.1:0", buffer_size=1000)) as server:
    ...     print(server.address)  # doctest: +SKIP

    Raises:
        ServerUnavailableError: the address cannot be listened on.
        InvalidArgumentError: the storing device is not there.
        FailedPreconditionError: the data directory has other settings, or is of a newer version. Nothing in it changes.
        DirectoryInUseError: another server has the data directory.
        CorruptDataError: what is in the data directory is not what was written.
    """

    def __init__(self, config: ServerConfig | None = None, *, on_failure: Callable[[], object] | None = None) -> None:
        self._config = ServerConfig() if config is None else config
        self._address = ""
        self._on_failure = on_failure
        self._failure: StorageError | None = None
        self._failing = threading.Lock()
        self._owner = Owner("the server")

    @property
    def address(self) -> str:
        """Where clients reach it, with the port that was picked: HOST:PORT or unix:PATH."""
        return self._address

    @property
    def failure(self) -> StorageError | None:
        """How the disk failed, where it did."""
        return self._failure

    def _failed(self, error: StorageError) -> None:
        with self._failing:  # Each table calls.
            first, self._failure = self._failure is None, self._failure or error
        log.critical("the disk failed: nothing more is acknowledged", error=str(error))
        if first and self._on_failure is not None:
            self._on_failure()

    def start(self) -> Self:
        """Opens the tables and listens. Returns when calls are served."""
        if self._address:
            self._owner.check()
        self._owner = Owner("the server")
        keep_in_forks(self)
        config = self._config
        check_free(config.address)
        check_device(torch.device(config.storing_device))
        self._tables = Tables(
            config.data_dir, config.storing_device, config.buffer_size, config.max_tables, durability=config.durability, on_failure=self._failed
        )
        shared_memory = SharedMemory(config.shared_memory_dir and config.shared_memory_dir.resolve())
        shared_memory.sweep()
        self._calls, self._health = Calls(config.max_workers), Health()
        self._workers = CallThreads(self._calls.threads, "tdreplay-call")
        self._grpc = grpc.server(self._workers, options=_options())
        slots = StreamSlots(config.max_streams, config.max_standing)
        handlers = Handlers(SERVICE, ReplayBufferService(self._tables, shared_memory), self._calls, slots)
        self._grpc.add_generic_rpc_handlers((handlers, self._health.handlers()))
        try:
            self._address = self._listen(config.address)
        except BaseException:
            self._close()
            raise
        self._grpc.start()
        log.info("listening", address=self._address)
        return self

    def _listen(self, address: str) -> str:
        try:
            with _private_socket(address):
                port = self._grpc.add_insecure_port(address)
        except RuntimeError as error:
            raise ServerUnavailableError(f"address {address} cannot be listened on: {error}") from None
        return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"

    def stop(self, grace: float | None = None) -> None:
        """Says that it does not serve any more, refuses new calls, gives the running ones time to finish, ends them, and closes the tables.

        Streams that wait for their client have nothing to finish: they end at once. In a fork of the process nothing happens.

        Args:
            grace: seconds that running calls get; None: the setting `grace_seconds`.
        """
        if not self._owner.is_here:
            return
        ends = time.monotonic() + (self._config.grace_seconds if grace is None else grace)
        self._health.stop()
        self._calls.stop(ends - time.monotonic())
        self._health.close()
        self._grpc.stop(max(0.0, ends - time.monotonic())).wait()
        self._close()
        log.info("stopped", address=self._address)

    def _close(self) -> None:
        self._calls.stop(0.0)
        self._health.close()
        self._workers.shutdown(wait=False)
        self._tables.close()

    def wait(self, timeout: float | None = None) -> bool:
        """Blocks until the server stopped, at most `timeout` seconds. True where it was the timeout."""
        self._owner.check()
        ran_out: bool = self._grpc.wait_for_termination(timeout)
        return ran_out

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop()


@contextmanager
def _private_socket(address: str) -> Iterator[None]:
    """Sees to it that the Unix socket that is made meanwhile is for this user alone: the umask says so to bind(2), and there is no other way to."""
    if not address.startswith("unix:"):
        yield
        return
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)


def _options() -> list[tuple[str, int]]:
    return [
        *message_options(),
        ("grpc.compression_enabled_algorithms_bitset", 1),  # None: what a compressed message takes is known only when it is there.
        # A connection beyond that is closed at once: the tables need descriptors as well.
        ("grpc.max_allowed_incoming_connections", connection_limit()),
        ("grpc.so_reuseport", 0),  # A second server on the same port is an error, not a silent half of the traffic.
        # A client that vanished without a word is noticed, so that its stream slot is free again.
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.ping_timeout_ms", 10_000),  # What gRPC waits for the answer to a ping: a minute, unless it is told so.
        ("grpc.keepalive_permit_without_calls", 1),
        # A client may ask as often, to notice a server that vanished.
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ]
