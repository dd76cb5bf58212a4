"""The server: tables, and the gRPC server that serves them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

import torch
from typing_extensions import Self

from tdreplay.errors import StorageError
from tdreplay.processes import Owner, keep_in_forks
from tdreplay_server.access.identities import Identities
from tdreplay_server.config import ServerConfig
from tdreplay_server.durability.shard_mark import NO_SHARD
from tdreplay_server.monitoring.exporter import Exporter
from tdreplay_server.monitoring.registry import registry_of
from tdreplay_server.storage.device import check_device
from tdreplay_server.system.logs import log
from tdreplay_server.tables.registry import Tables
from tdreplay_server.transport.credentials import server_credentials
from tdreplay_server.transport.grpc_server import GrpcServer
from tdreplay_server.transport.guards.private_paths import PrivatePaths
from tdreplay_server.transport.listening import check_folder, check_free
from tdreplay_server.transport.memory_budget import MemoryBudget
from tdreplay_server.transport.server_state import ServerState
from tdreplay_server.transport.service import ReplayBufferService
from tdreplay_server.transport.shared_memory import SharedMemory

__all__ = ["ReplayServer"]


class ReplayServer:
    """A replay buffer server in this process. It listens from `start` (or ``with``) to `stop`. A fork of the process has no server.

    Args:
        config: its settings; None: the defaults.
        on_failure: called once, from a thread of its own, when the disk failed. From then on the server acknowledges nothing, and is to be stopped;
            `on_failure` may do that.

    >>> with ReplayServer(ServerConfig(address="127.0.0.1:0", buffer_size=1000)) as server:
    ...     print(server.address)  # doctest: +SKIP

    Raises:
        ServerUnavailableError: the address cannot be listened on.
        InvalidArgumentError: the storing device is not there, or the files of certificates or tokens cannot be used.
        FailedPreconditionError: the data directory has other settings, or is of a newer version. Nothing in it changes.
        DirectoryInUseError: another server has the data directory.
        CorruptDataError: what is in the data directory is not what was written.
    """

    def __init__(self, config: ServerConfig | None = None, *, on_failure: Callable[[], object] | None = None) -> None:
        self._config = ServerConfig() if config is None else config
        self._address = ""
        self._exporter: Exporter | None = None
        self._on_failure = on_failure
        self._failure: StorageError | None = None
        self._failing = threading.Lock()
        self._owner = Owner("the server")

    @property
    def address(self) -> str:
        """Where clients reach it, with the port that was picked: HOST:PORT or unix:PATH."""
        return self._address

    @property
    def metrics_address(self) -> str | None:
        """Where Prometheus finds the metrics, under /metrics, with the port that was picked: HOST:PORT; None: nowhere."""
        return None if self._exporter is None else self._exporter.address

    @property
    def failure(self) -> StorageError | None:
        """The error with which the disk failed; None: it did not fail."""
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
        check_folder(config.address, insecure=config.insecure)
        credentials = server_credentials(config.cert_file, config.key_file, config.trusted_ca_file)
        for device in {config.storing_device, *(table.storing_device or "cpu" for table in (config.tables or {}).values())}:
            check_device(torch.device(device))
        self._identities = (
            Identities(config.tokens_file, certificates=config.client_cert_auth) if config.tokens_file or config.client_cert_auth else None
        )
        self._tables = Tables(
            config.data_dir and config.data_dir.absolute(),
            config.storing_device,
            config.buffer_size,
            config.max_tables,
            durability=config.durability,
            on_failure=self._failed,
            wanted=tuple((config.tables or {}).values()),
            shard=config.shard_name,
        )
        shared_memory = SharedMemory(config.shared_memory_dir and config.shared_memory_dir.resolve())
        shared_memory.sweep()
        state = ServerState(config.data_dir, self._tables.durability, credentials is not None, self._identities is not None, shard=self._tables.shard)
        service = ReplayBufferService(self._tables, shared_memory, state, config.limits)
        paths = PrivatePaths(path for path in (config.data_dir, config.shared_memory_dir) if path is not None)
        self._grpc = GrpcServer(service, config.limits, self._identities, paths, counting=config.metrics_address is not None, tracing=config.tracing)
        state.memory_budget_bytes = self._grpc.memory_budget.size
        state.clients, state.limits = self._grpc.clients.connected, lambda: (*self._grpc.limits(), self._tables.used())
        try:
            self._address = self._grpc.listen(config.address, credentials, int(config.socket_mode, 8))
            self._exporter = self._made_exporter()
        except BaseException:
            self._grpc.close()
            self._tables.close()
            raise
        if self._identities is not None:
            self._identities.start()
        self._grpc.start()
        _log_budget(self._grpc.memory_budget)
        shard = {} if self._tables.shard == NO_SHARD else {"shard": str(self._tables.shard)}
        log.info("listening", address=self._address, tls=_said(credentials), asks_who_calls=_said(self._identities), **shard)
        if self._exporter is not None:
            self._exporter.start()
            log.info("metrics are served", address=self._exporter.address, path="/metrics")
        return self

    def _made_exporter(self) -> Exporter | None:
        config = self._config
        if config.metrics_address is None:
            return None
        certificate = None if config.cert_file is None or config.key_file is None else (config.cert_file, config.key_file)
        registry = registry_of(self._tables, self._grpc, config.data_dir, lambda: self._failure is not None)
        return Exporter(registry, config.metrics_address, certificate)

    def stop(self, grace: float | None = None) -> None:
        """Says that it does not serve any more, refuses new calls, gives the running ones time to finish, ends them, and closes the tables.

        Streams that wait for their client have nothing to finish: they end at once. In a fork of the process nothing happens.

        Args:
            grace: seconds that running calls get; None: the setting `grace_seconds`.
        """
        if not self._owner.is_here:
            return
        self._grpc.stop(self._config.grace_seconds if grace is None else grace)
        if self._identities is not None:
            self._identities.close()
        self._tables.close()
        if self._exporter is not None:
            self._exporter.close()
        log.info("stopped", address=self._address)

    def wait(self, timeout: float | None = None) -> bool:
        """Blocks until the server stopped, at most `timeout` seconds. True where it was the timeout."""
        self._owner.check()
        return self._grpc.wait(timeout)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop()


def _said(part: object) -> str:
    """Whether the server has a part, as the log says it."""
    return "no" if part is None else "yes"


def _log_budget(budget: MemoryBudget) -> None:
    """Says, in MiB, what clients can cost: all of them, those that are not known, and each term of the sum."""
    log.info("memory budget", all_mib=budget.size >> 20, unknown_peers_mib=budget.unknown_bytes >> 20, **budget.described())
