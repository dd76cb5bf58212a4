"""The gRPC server: the socket that it listens on, its two services, and how it stops."""

from __future__ import annotations

import time

import grpc

from tdreplay.errors import ServerUnavailableError
from tdreplay.limits import message_options
from tdreplay.server_status import Limit
from tdreplay.v1 import replay_buffer_pb2
from tdreplay_server.access.identities import Identities
from tdreplay_server.system.descriptors import connection_limit
from tdreplay_server.transport.call_threads import CallThreads
from tdreplay_server.transport.dispatch import Dispatch
from tdreplay_server.transport.guards.clients import Clients
from tdreplay_server.transport.guards.guard import Guard
from tdreplay_server.transport.guards.identity import Identity
from tdreplay_server.transport.guards.permits import Permits
from tdreplay_server.transport.guards.running import Running
from tdreplay_server.transport.guards.statuses import statuses
from tdreplay_server.transport.health import Health
from tdreplay_server.transport.listening import socket_of
from tdreplay_server.transport.service import ReplayBufferService

__all__ = ["GrpcServer"]

SERVICE = replay_buffer_pb2.DESCRIPTOR.services_by_name["ReplayBufferService"]


class GrpcServer:
    """Serves a replay buffer service, and the health service beside it.

    Args:
        service: the handlers of the calls.
        max_workers: the number of calls from which on those that wait for their clients make room for others.
        max_streams: the number of long-lived streams that may be open.
        max_standing: the number of standing calls that may be open beside these.
        identities: who may call; None: anybody, and nobody is asked.

    Attributes:
        clients: who is connected.
    """

    def __init__(
        self, service: ReplayBufferService, *, max_workers: int, max_streams: int, max_standing: int, identities: Identities | None = None
    ) -> None:
        self._running, self._health = Running(max_workers), Health()
        self._threads = CallThreads(self._running.threads, "tdreplay-call")
        self._grpc = grpc.server(self._threads, options=_options())
        self.clients, self._permits = Clients(), Permits(max_streams, max_standing)
        asks: list[Guard] = [] if identities is None else [Identity(identities)]
        # From the outside in: each call passes them in this order. Only behind `running` may a call be refused that was let in.
        guards: tuple[Guard, ...] = (statuses, self._running, *asks, self.clients, self._permits)
        dispatch = Dispatch(SERVICE, service, guards, self._running.admit)
        self._grpc.add_generic_rpc_handlers((dispatch, self._health.dispatch()))

    def limits(self) -> tuple[Limit, ...]:
        """The limits of calls, and how much of each is used."""
        return self._running.used(), self._permits.used()

    def listen(self, address: str, credentials: grpc.ServerCredentials | None = None, socket_mode: int = 0o600) -> str:
        """Takes an address, HOST:PORT or unix:PATH, and gives it back with the port that was picked where PORT is 0.

        Args:
            address: the address.
            credentials: those of TLS; None: connections are not encrypted.
            socket_mode: which users may connect to a Unix socket, as chmod(1) writes it.

        Raises:
            ServerUnavailableError: the address cannot be listened on.
        """
        try:
            with socket_of(address, socket_mode):
                port = self._grpc.add_insecure_port(address) if credentials is None else self._grpc.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise ServerUnavailableError(f"address {address} cannot be listened on: {error}") from None
        return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"

    def start(self) -> None:
        """Serves calls from now on."""
        self._grpc.start()

    def stop(self, seconds: float) -> None:
        """Says that it does not serve any more, refuses new calls, gives those that run so many seconds to finish, and ends them.

        Streams that wait for their client have nothing to finish: they end at once.
        """
        ends = time.monotonic() + seconds
        self._health.stop()
        self._running.stop(seconds)
        self._health.close()
        self._grpc.stop(max(0.0, ends - time.monotonic())).wait()
        self.close()

    def close(self) -> None:
        """Ends its threads, also where it was never started."""
        self._running.stop(0.0)
        self._health.close()
        self._threads.shutdown(wait=False)

    def wait(self, timeout: float | None) -> bool:
        """Blocks until the server has stopped, at most `timeout` seconds. True where the time ran out."""
        ran_out: bool = self._grpc.wait_for_termination(timeout)
        return ran_out


def _options() -> list[tuple[str, int]]:
    return [
        *message_options(),
        ("grpc.compression_enabled_algorithms_bitset", 1),  # None: a compressed message shows its size only after it was unpacked.
        # A connection beyond that is closed at once: the tables need descriptors as well.
        ("grpc.max_allowed_incoming_connections", connection_limit()),
        ("grpc.so_reuseport", 0),  # A second server on the same port is an error, not a silent half of the traffic.
        # The server notices a client that vanished without a word, and so its stream's permit is free again.
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.ping_timeout_ms", 10_000),  # gRPC waits a minute for the answer to a ping, unless it is told otherwise.
        ("grpc.keepalive_permit_without_calls", 1),
        # A client may ask as often, to notice a server that vanished.
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ]
