"""The page /metrics, in threads of its own: it answers whatever the calls of gRPC do."""

from __future__ import annotations

import itertools
import socket
import ssl
import threading
from http.server import HTTPServer
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any

from prometheus_client import CollectorRegistry, MetricsHandler

from tdreplay.errors import ServerUnavailableError
from tdreplay_server.system.logs import log

__all__ = ["Exporter"]

PATH = "/metrics"
CLIENT_SECONDS = 5.0
"""How long the page waits for a client to say something, or to take something."""
MOST_CLIENTS = 16
"""Clients that are served at once. One more ends the one that came first."""


class Exporter:
    """Serves the metrics of a registry over HTTP, from `start` to `close`.

    Args:
        registry: The metrics.
        address: HOST:PORT, where port 0 picks a free one.
        certificate: The files of a certificate and of its key, PEM: the page is served over TLS. They are read for each client, so a certificate that
            is changed is used from then on. None: without TLS.

    Attributes:
        address: HOST:PORT, with the port that was picked.

    Raises:
        ServerUnavailableError: the address cannot be listened on, or the certificate cannot be used.
    """

    def __init__(self, registry: CollectorRegistry, address: str, certificate: tuple[Path, Path] | None = None) -> None:
        host, _, port = address.rpartition(":")
        try:
            self._certificate = None if certificate is None else _Certificate(*certificate)
            family, *_, place = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
            self._http = _Server(family, place, _Page.factory(registry), self._certificate)
        except OSError as error:
            raise ServerUnavailableError(f"metrics_address {address} cannot be listened on: {error.strerror or error}") from None
        self.address = f"{host}:{self._http.server_address[1]}"

    def start(self) -> None:
        """Answers from now on."""
        threading.Thread(target=self._http.run, name="tdreplay-metrics", daemon=True).start()

    def close(self) -> None:
        """Answers no more. Closing twice is allowed."""
        self._http.end()


class _Page(MetricsHandler):
    """One client. It serves one request, and then the connection ends: HTTP/1.0."""

    timeout = CLIENT_SECONDS

    def do_GET(self) -> None:  # noqa: N802 - the library calls it so.
        """Answers with the metrics; to another path than theirs with 404."""
        if self.path.partition("?")[0] == PATH:
            super().do_GET()
        else:
            self.send_error(404, f"the metrics are at {PATH}")


class _Certificate:
    """The certificate of the page, as its files have it now."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._files = (certificate, key)
        self._context = self._read()

    def _read(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(*self._files)
        return context

    def wrap(self, connection: socket.socket) -> ssl.SSLSocket:
        """The connection over TLS; the handshake is still to come. Where the files are being changed, the last good ones count."""
        try:
            self._context = self._read()
        except OSError as error:  # ssl.SSLError is one, too.
            log.warning("the certificate of the metrics cannot be read: the last one is used", error=str(error))
        return self._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)


class _Server(ThreadingMixIn, HTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, family: int, place: Any, page: Any, certificate: _Certificate | None) -> None:
        self.address_family, self._certificate, self._over = family, certificate, False
        self._clients: dict[int, socket.socket] = {}
        self._numbers, self._changing = itertools.count(), threading.Lock()
        super().__init__(place, page)

    def server_bind(self) -> None:
        """Takes the address. It asks no name server for its own name, as HTTPServer does."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        super(HTTPServer, self).server_bind()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def run(self) -> None:
        """Takes clients until it is ended."""
        while not self._over:
            self.handle_request()
        self.server_close()

    def end(self) -> None:
        """Takes no more clients, and ends those that are there."""
        self._over = True
        for open_ in (self.socket, *list(self._clients.values())):
            _end(open_)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Serves a client, in a thread of its own."""
        request.settimeout(CLIENT_SECONDS)
        connection = request if self._certificate is None else self._certificate.wrap(request)
        number = next(self._numbers)
        with connection:
            self._take_in(number, connection)
            try:
                if isinstance(connection, ssl.SSLSocket):
                    connection.do_handshake()
                super().finish_request(connection, client_address)
            finally:
                with self._changing:
                    self._clients.pop(number, None)

    def _take_in(self, number: int, connection: socket.socket) -> None:
        """Notes a client. One that is slow on purpose does not keep the others out: where there are too many, the one that came first goes."""
        with self._changing:
            self._clients[number] = connection
            first = next(iter(self._clients)) if len(self._clients) > MOST_CLIENTS else None
            gone = None if first is None else self._clients.pop(first)
        if gone is not None:
            _end(gone)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away, is slow or speaks no HTTP is nothing to say."""
        log.debug("a client of the metrics was not answered", exc_info=True)


def _end(open_: socket.socket) -> None:
    try:
        socket.socket.shutdown(open_, socket.SHUT_RDWR)  # Not that of TLS, which another thread may be using.
    except OSError as error:  # It is closed already.
        log.debug("a socket of the metrics is closed already", error=str(error))
