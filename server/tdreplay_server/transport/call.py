"""One call of a client, as the guards and the handlers see it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn

import grpc

from tdreplay.block import Bytes
from tdreplay.errors import TRAILER, ReplayError
from tdreplay.status_details import DETAILS_KEY, details_of_error
from tdreplay_server.access.principal import ANYBODY, Principal

__all__ = ["Call", "ClientGoneError", "Request", "client_gone"]


class Request(NamedTuple):
    """A message of a client, decoded: its fields, and its block, which is a view of the received bytes. It is empty where the message has none.

    `size` is that of the message as it came, in bytes.
    """

    head: Any
    block: Bytes
    size: int = 0


class ClientGoneError(Exception):
    """The client ended the call, or was lost. Nobody is left to answer."""


def client_gone(error: grpc.RpcError) -> ClientGoneError:
    """The error to raise in place of gRPC's where the client is gone."""
    # gRPC keeps the error with the call, and with its traceback all that the call's frames hold, shared memory and requests too.
    error.__traceback__ = None
    return ClientGoneError()


class Call:
    """A call, which runs in a thread of its own.

    Args:
        context: what gRPC knows of the call.
        method: the call's name in the proto.
        admitted: whether there was room for the call when it arrived.
        patient: whether the client may take its time to send the first request: it opens a stream, and may have nothing to send yet.

    Attributes:
        principal: who calls, once the guard that asks for that has let the call pass. Before it, and where nobody is asked: `ANYBODY`.
        waits_since: when the call began to wait for its first request, or for its answer to be taken (`time.monotonic`); None: it does not wait.
        yields_since: when the call began to wait for other calls, which a rate limiter may make it do (`time.monotonic`); None: it does not.
        idle: whether the call waits for the next request.
        status: the status with which the call ends, as far as the server has a say in it: a client may end it before.
        refusal: the class of the error with which the call failed, and the limit that it would break; '': it did not fail, and there is no limit.
    """

    __slots__ = (
        "_context",
        "_request_id",
        "admitted",
        "idle",
        "method",
        "patient",
        "principal",
        "refusal",
        "status",
        "waits_since",
        "yields_since",
    )

    def __init__(self, context: grpc.ServicerContext, method: str, *, admitted: bool, patient: bool) -> None:
        self._context, self.method, self.admitted, self.patient = context, method, admitted, patient
        self.principal: Principal = ANYBODY
        self._request_id = ""
        self.waits_since: float | None = None
        self.yields_since: float | None = None
        self.idle = False
        self.status = grpc.StatusCode.OK
        self.refusal = ("", "")

    @property
    def peer(self) -> str:
        """The client's address, as gRPC writes it: ``ipv4:127.0.0.1:5000``, ``unix:``."""
        return self._context.peer()

    @property
    def request_id(self) -> str:
        """The call's name in the log. It is made when it is asked for: calls that go well have no line in the log."""
        self._request_id = self._request_id or uuid.uuid4().hex[:16]
        return self._request_id

    @property
    def metadata(self) -> Mapping[str, str | bytes]:
        """What the client sent beside its requests, by lower-case key; of a key that comes several times the last."""
        return dict(self._context.invocation_metadata())

    @property
    def certificate_names(self) -> tuple[str, ...]:
        """The common names of the client's certificate, which TLS has verified. Empty where the client showed none."""
        return tuple(bytes(name).decode(errors="replace") for name in self._context.auth_context().get("x509_common_name", ()))

    @property
    def is_active(self) -> bool:
        """Whether the client still waits for an answer."""
        return self._context.is_active()

    @property
    def outcome(self) -> grpc.StatusCode:
        """The status with which the call ends, where it is at its end now."""
        if self.status not in (grpc.StatusCode.OK, grpc.StatusCode.CANCELLED) or self._context.is_active():
            return self.status
        left = self._context.time_remaining()
        return grpc.StatusCode.CANCELLED if left is None or left > 0 else grpc.StatusCode.DEADLINE_EXCEEDED

    def on_end(self, act: Callable[[], None]) -> None:
        """Calls `act` in a thread of gRPC's when the call ends, however it ends."""
        self._context.add_callback(act)

    @contextmanager
    def waiting_for_others(self) -> Iterator[None]:
        """For ``with``: the call may wait for other calls. Where threads are short it makes room for them, so that they can come."""
        self.yields_since = time.monotonic()
        try:
            yield
        finally:
            self.yields_since = None

    def stood(self, now: float) -> float:
        """The seconds, up to `now` (`time.monotonic`), for which the call has waited for its client or for other calls; 0: it works."""
        return max(0.0 if since is None else now - since for since in (self.waits_since, self.yields_since))

    def accept(self) -> None:
        """Tells the client that its query is accepted, before there is an answer.

        Raises:
            ClientGoneError: the client is gone.
        """
        try:
            self._context.send_initial_metadata(())
        except grpc.RpcError as error:
            raise client_gone(error) from None

    def cancel(self) -> None:
        """Ends the call as CANCELLED. Any thread may do it."""
        self._context.cancel()

    def set_status(self, status: grpc.StatusCode) -> None:
        """Sets the status with which the call ends after its answer. Without this it is OK."""
        self.status = status
        self._context.set_code(status)

    def fail(self, error: ReplayError, text: str) -> NoReturn:
        """Ends the call with the status of an error, and with what programs need of it, so that clients of tdreplay raise it again.

        Args:
            error: the error.
            text: what the status says.

        Raises:
            Exception: always: gRPC takes it for the end of the call.
        """
        self.status = error.code
        self.refusal = (type(error).__name__, getattr(error, "limit", "") or "")  # Not the error: its traceback holds all that the call held.
        self._context.set_trailing_metadata(((TRAILER, type(error).__name__), (DETAILS_KEY, details_of_error(error, text, self.request_id))))
        self._context.abort(error.code, text)
