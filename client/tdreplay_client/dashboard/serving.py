"""The dashboard as a web server."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection

import uvicorn
from typing_extensions import Self

from tdreplay.addresses import check_address
from tdreplay.errors import InvalidArgumentError
from tdreplay_client.dashboard.app import dashboard_app
from tdreplay_client.dashboard.observer import Observer
from tdreplay_client.dashboard.tables import RowReader
from tdreplay_client.transport.connection import Connection

__all__ = ["Dashboard"]

CONNECTIONS, BACKLOG = 128, 64
"""Connections of browsers at a time, and those that may wait to be one."""

END_SECONDS = 2
"""How long answers may still take when the dashboard is told to stop."""


class Dashboard:
    """A dashboard of one server. For ``with``: within it the server is observed, and `url` takes connections, which `run` answers.

    Args:
        connection: To the server. Its owner closes it.
        listen: HOST:PORT, where browsers find it; port 0 picks a free one.
        insecure: Whether other hosts than this one may see it: everybody who reaches that address, without encryption, and with the rights of the
            dashboard's token.
        hosts: Names by which browsers reach it, beside localhost and `listen`; IP addresses always pass.

    Raises:
        InvalidArgumentError: `listen` is no address, or not of this host, and `insecure` is False.
        OSError: nobody can listen there.
    """

    def __init__(self, connection: Connection, listen: str, *, insecure: bool = False, hosts: Collection[str] = ()) -> None:
        host, port = _host_and_port(listen)
        if not insecure and not _is_loopback(host):
            raise InvalidArgumentError(f"listen ({listen}) is not loopback: everybody who reaches it would see all rows; --insecure allows that")
        self._connection, self._host, self._names = connection, host, (host, *hosts)
        self._observer = Observer(connection)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, port), family=family, backlog=BACKLOG)
        app = dashboard_app(connection.address, self._observer, RowReader(connection), self._names)
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                limit_concurrency=CONNECTIONS,
                timeout_graceful_shutdown=END_SECONDS,
            )
        )

    def __enter__(self) -> Self:
        self._observer.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._observer.__exit__(*error)
        self._socket.close()

    @property
    def url(self) -> str:
        """Where a browser finds it."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._socket.getsockname()[1]}/"

    def run(self) -> None:
        """Answers browsers until `stop`, or, in the main thread, until SIGINT or SIGTERM."""
        self._server.run(sockets=[self._socket])

    def stop(self) -> None:
        """Lets `run` return, from any thread."""
        self._server.should_exit = True


def _host_and_port(listen: str) -> tuple[str, int]:
    address = check_address(listen, least_port=0)
    if address.startswith("unix:"):
        raise InvalidArgumentError(f"listen ({listen[:120]}) must be HOST:PORT: browsers know no Unix sockets")
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
