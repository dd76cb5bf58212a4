"""The calls that run: a server that stops begins no other, and waits for these."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import grpc

from tdreplay.errors import ServerUnavailableError

__all__ = ["ClientGoneError", "RunningCalls"]

Request = TypeVar("Request")


class ClientGoneError(Exception):
    """The client ended the call, or was lost, before its next request came."""


class RunningCalls:
    """Counts the calls that run, and knows those of them that only wait for their client.

    gRPC could refuse new calls by itself, but those that come while it tells its clients end as CANCELLED, which says nothing of the server.
    """

    def __init__(self) -> None:
        self._count = 0
        self._idle: set[grpc.ServicerContext] = set()
        self._stopping = False
        self._changed = threading.Condition()

    @contextmanager
    def call(self) -> Iterator[None]:
        """A call runs.

        Raises:
            ServerUnavailableError: the server stops.
        """
        with self._changed:
            self._check_serving()
            self._count += 1
        try:
            yield
        finally:
            with self._changed:
                self._count -= 1
                self._changed.notify_all()

    def requests(self, received: Iterator[Request], context: grpc.ServicerContext) -> Iterator[Request]:
        """The requests that the client of a running call streams.

        Raises:
            ServerUnavailableError: the server stops, and the next request has not come yet.
            ClientGoneError: no request will come, and the client did not say so.
        """
        while True:
            with self._changed:
                self._check_serving()
                self._idle.add(context)
            try:
                request = next(received, None)
            except grpc.RpcError as error:
                # gRPC keeps the error with the call, and with its traceback all that the call's frames hold, shared memory and requests too.
                error.__traceback__ = None
                raise ClientGoneError from None
            finally:
                with self._changed:
                    self._idle.discard(context)
            if request is None:
                return
            yield request

    def _check_serving(self) -> None:
        if self._stopping:
            raise ServerUnavailableError("the server is stopping")

    def stop(self, seconds: float) -> None:
        """Begins no call any more, ends those that wait for a request, and blocks until the others are finished, at most for so long."""
        with self._changed:
            self._stopping = True
            idle = list(self._idle)
        for context in idle:
            context.cancel()
        with self._changed:
            self._changed.wait_for(lambda: not self._count, seconds)
