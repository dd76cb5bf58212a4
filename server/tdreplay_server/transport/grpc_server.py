"""The gRPC server: the socket that it listens on, its services, and how it stops."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import grpc

from tdreplay.errors import ServerUnavailableError
from tdreplay.limits import MAX_MESSAGE_BYTES
from tdreplay.server_status import Limit
from tdreplay.v1 import replay_buffer_pb2
from tdreplay_server.access.identities import Identities
from tdreplay_server.system.descriptors import connection_limit
from tdreplay_server.transport.call_threads import CallThreads
from tdreplay_server.transport.dispatch import Dispatch
from tdreplay_server.transport.guards.clients import Clients
from tdreplay_server.transport.guards.guard import Guard
from tdreplay_server.transport.guards.identity import Identity
from tdreplay_server.transport.guards.in_flight import InFlight
from tdreplay_server.transport.guards.limit import Share
from tdreplay_server.transport.guards.metrics import CallCounts
from tdreplay_server.transport.guards.permits import Permits
from tdreplay_server.transport.guards.private_paths import PrivatePaths
from tdreplay_server.transport.guards.running import Running
from tdreplay_server.transport.guards.shares import Shares
from tdreplay_server.transport.guards.statuses import Statuses
from tdreplay_server.transport.health import SERVICE as HEALTH
from tdreplay_server.transport.health import Health
from tdreplay_server.transport.listening import socket_of
from tdreplay_server.transport.memory_budget import FRAME_BYTES, MOST_LOOKS, WINDOW_BYTES, memory_budget
from tdreplay_server.transport.reflection import Reflection
from tdreplay_server.transport.server_limits import ServerLimits
from tdreplay_server.transport.service import ReplayBufferService

__all__ = ["GrpcServer"]

SERVICE = replay_buffer_pb2.DESCRIPTOR.services_by_name["ReplayBufferService"]
LOOKS = frozenset({"Describe", "ListTables", "ServerStatus"})
"""The calls with which people and programs look at a server. They have room of their own, so that they are answered whatever the others do."""
HANDSHAKE_SECONDS = 20
"""How long a connection may take to say its first HTTP/2 frames."""


class GrpcServer:
    """Serves a replay buffer service, and beside it the services that say whether it serves, and what it serves.

    Args:
        service: the handlers of the calls.
        limits: what clients may do.
        identities: who may call; None: anybody, and nobody is asked.
        paths: what clients do not read in the text of an error.
        counting: whether calls are counted, for metrics.
        tracing: whether OpenTelemetry gets a span of each call.

    Attributes:
        clients: who is connected.
        counts: what was counted of the calls of each of its services.
        memory_budget: the memory that clients can cost beside the rows.
    """

    def __init__(
        self,
        service: ReplayBufferService,
        limits: ServerLimits,
        identities: Identities | None = None,
        paths: PrivatePaths | None = None,
        *,
        counting: bool = True,
        tracing: bool = False,
    ) -> None:
        self._limits, self._health = limits, Health()
        self._reflection, counts = Reflection((SERVICE.full_name, HEALTH.full_name)), CallCounts(SERVICE)
        self.counts: Sequence[CallCounts] = (counts, self._health.counts, self._reflection.counts)
        self._running, self._looking = Running(limits.max_workers, "max_workers"), Running(MOST_LOOKS)
        self._threads = CallThreads(self._running.threads, "tdreplay-call")
        self._look_threads = CallThreads(self._looking.threads, "tdreplay-look")
        connections = min(limits.max_connections, connection_limit())
        self.memory_budget = memory_budget(limits, connections)
        self._grpc = grpc.server(self._threads, options=_options(limits, connections))
        self.clients, self._in_flight = Clients(), InFlight(limits.max_bytes_in_flight)
        self._shares = Shares(_share("max_calls_per_client", limits.max_calls_per_client, limits.max_workers))
        streams = _share("max_streams_per_client", limits.max_streams_per_client, limits.max_streams)
        self._permits = Permits(limits.max_streams, limits.max_standing, streams)
        identity = None if identities is None else Identity(identities)
        asks: list[Guard] = [] if identity is None else [identity]
        outermost: list[Guard] = [*([counts] if counting else []), *([_tracing()] if tracing else []), Statuses(paths)]
        # From the outside in: each call passes them in this order. Only behind `running` may a call be refused that was let in.
        guards: tuple[Guard, ...] = (*outermost, self._running, *asks, self.clients, self._shares, self._in_flight, self._permits)
        look_guards: tuple[Guard, ...] = (*outermost, self._looking, *asks, self.clients)
        strangers = (lambda _: False) if identity is None else identity.is_stranger
        refusing = (*outermost, *asks)
        looks = Dispatch(SERVICE, service, look_guards, self._looking.admit, self._look_threads, LOOKS, strangers=strangers, asks=refusing)
        dispatch = Dispatch(SERVICE, service, guards, self._running.admit, strangers=strangers, asks=refusing)
        self._grpc.add_generic_rpc_handlers((looks, dispatch, self._health.dispatch(), self._reflection.dispatch()))

    def limits(self) -> list[Limit]:
        """The limits, and how much of each is used."""
        counted = [use for guard in (self._running, self._shares, self._in_flight, self._permits) for use in guard.used()]
        names = ("max_connections", "max_message_bytes", "max_header_bytes", "max_metadata_bytes", "max_batch_rows")
        return [*counted, *(Limit(name=name, limit=getattr(self._limits, name)) for name in names)]

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
        self._looking.stop(0.0)
        self._running.stop(seconds)
        self._health.close()
        self._reflection.close()
        self._grpc.stop(max(0.0, ends - time.monotonic())).wait()
        self.close()

    def close(self) -> None:
        """Ends its threads, also where it was never started."""
        for running, threads in ((self._running, self._threads), (self._looking, self._look_threads)):
            running.stop(0.0)
            threads.shutdown(wait=False)
        self._health.close()
        self._reflection.close()

    def wait(self, timeout: float | None) -> bool:
        """Blocks until the server has stopped, at most `timeout` seconds. True where the time ran out."""
        ran_out: bool = self._grpc.wait_for_termination(timeout)
        return ran_out


def _tracing() -> Guard:
    from tdreplay_server.transport.guards.tracing import Tracing  # Here: it needs opentelemetry-api, which not every server has.

    return Tracing(SERVICE.full_name)


def _share(name: str, given: int | None, total: int) -> Share:
    """How much of `total` one client may have. Unless it is set, clients of this host that have no name may have all: they cannot be told apart."""
    return Share(name, given or -(-total * 3 // 4), given or sys.maxsize)


def _options(limits: ServerLimits, connections: int) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", limits.max_message_bytes),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        # The first is where gRPC begins to refuse calls at random, the second where it refuses all.
        ("grpc.max_metadata_size", limits.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", limits.max_metadata_bytes),
        # A window that does not grow: by itself, gRPC would let each call send 4 MiB that nobody asked for.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
        ("grpc.http2.max_frame_size", FRAME_BYTES),
        ("grpc.compression_enabled_algorithms_bitset", 1),  # None: a compressed message shows its size only after it was unpacked.
        # A connection beyond that is closed at once: the tables need descriptors as well.
        ("grpc.max_allowed_incoming_connections", connections),
        ("grpc.server_handshake_timeout_ms", 1000 * HANDSHAKE_SECONDS),
        ("grpc.max_connection_idle_ms", int(1000 * limits.connection_idle_seconds)),
        ("grpc.so_reuseport", 0),  # A second server on the same port is an error, not a silent half of the traffic.
        # The server notices a client that vanished without a word, and so its stream's permit is free again.
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.ping_timeout_ms", 10_000),  # gRPC waits a minute for the answer to a ping, unless it is told otherwise.
        ("grpc.keepalive_permit_without_calls", 1),
        # A client may ask as often, to notice a server that vanished.
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ]
