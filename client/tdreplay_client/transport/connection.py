"""The connection to a server: calls with deadlines, and gRPC's errors as tdreplay's."""

from __future__ import annotations

import atexit
import gc
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import copy
from typing import Any, SupportsFloat, TypeVar

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from tdreplay.errors import (
    TRAILER,
    CancelledError,
    ClosedError,
    DeadlineError,
    EmptyTableError,
    InternalError,
    InvalidArgumentError,
    MessageTooLargeError,
    OverloadedError,
    RateLimitedError,
    ReplayError,
    ResourceExhaustedError,
    ServerUnavailableError,
    StreamLimitError,
    TLSError,
    UnauthenticatedError,
    from_status,
)
from tdreplay.limits import check_seconds
from tdreplay.processes import Owner, keep_in_forks
from tdreplay.status_details import read_details
from tdreplay.texts import MAX_DETAILS, printable
from tdreplay.v1 import replay_buffer_pb2
from tdreplay_client.transport.access import OPEN, Access
from tdreplay_client.transport.addresses import check_target
from tdreplay_client.transport.answers import Answers, close_watchdog
from tdreplay_client.transport.channels import open_channel
from tdreplay_client.transport.failures import unavailable
from tdreplay_client.transport.retry_budget import RetryBudget
from tdreplay_client.transport.threads import await_call_threads, in_own_thread, interrupt_behind, start_reader
from tdreplay_client.transport.tracing import begin_span

__all__ = ["Connection"]

log = logging.getLogger("tdreplay")
SERVICE = replay_buffer_pb2.DESCRIPTOR.services_by_name["ReplayBufferService"]
EXIT_SECONDS = 1.0
TOO_LARGE = "SERVER: Received message larger than max"
"""What gRPC says where the server, or rather its gRPC, refuses a message before anything of the server sees it."""
T = TypeVar("T")


class Connection:
    """A channel to one server.

    Attributes:
        owner: the process that may use it: gRPC does not survive a fork.
        access: what the client shows to the server.
        disturbed: set when gRPC was interrupted (Ctrl-C).
        returns: how often the server came back after it was away.

    Args:
        address: HOST:PORT or unix:PATH.
        timeout: seconds that a call waits for an answer, a stream for its next message, and both for a server that is not there. None: a year.
        access: what the client shows to the server.

    Raises:
        InvalidArgumentError: one of them breaks its rule.
    """

    def __init__(self, address: str, timeout: SupportsFloat | None, access: Access = OPEN) -> None:
        self.address, self.timeout = check_target(address), check_seconds(timeout, "timeout")
        self.owner = Owner(f"the buffer at {self.address}", "gRPC does not survive a fork, so start such a process by spawn")
        self._away, self._noting, self.returns = False, threading.Lock(), 0
        self.disturbed = threading.Event()
        self.access = access
        self._met = False  # Whether the server answered at all.
        self._overload: OverloadedError | None = None  # What it says while it has too much to do.
        self._closed = threading.Event()
        self._use(open_channel(self.address, access))
        keep_in_forks(self)
        _open.add(self)

    def _use(self, channel: grpc.Channel) -> None:
        self._end = weakref.finalize(self, _close_channel, channel, self.owner, self.disturbed)
        self._calls = {method.name: _multi_callable(channel, method) for method in SERVICE.methods}
        self._channel = channel  # As the last one: see `_translated`.

    def move(self, address: str) -> None:
        """Goes on at another address, at which the same server is now, or the one that takes its place. Calls that are on their way are lost.

        Raises:
            InvalidArgumentError: it is no address.
            ForkedError, ClosedError: no calls can be made any more.
        """
        self.check_open()
        end, channel = self._end, open_channel(address, self.access)
        self.address = check_target(address)
        self._use(channel)
        end()
        if self._closed.is_set():  # Meanwhile: that closed one of both channels.
            self._end()

    def retried(self, attempt: Callable[[RetryBudget], T], *, for_rows: bool = False) -> T:
        """Calls `attempt`, and gives its result. Where the server cannot be reached, it is called again, until its budget is used up.

        It must be something that may be done twice. A server that has too much to do is waited for, too, as long as it says.

        Args:
            attempt: the calls to the server, which wait no longer than the budget that they get.
            for_rows: whether it waits while the table is empty.

        Raises:
            ServerUnavailableError: the server did not come back in time.
            TLSError: the two ends do not come to an encrypted connection, and never did.
            DeadlineError: it was there, and did not answer in time.
            EmptyTableError: no row came in time.
            RateLimitedError: the server waited for as long as it might.
            OverloadedError: the server had too much to do all the time.
            UnauthorizedError: the server does not know the caller, or does not allow the call. This is not tried again, but with another token.
            ClosedError: the connection was closed meanwhile.
        """
        return self._tried(attempt, lambda error, budget: self._worth_another(error, budget, for_rows))

    def admitted(self, attempt: Callable[[RetryBudget], T]) -> T:
        """Calls `attempt`, and gives its result. It is called again only where the server refused it before it did anything.

        It may be something that must not be done twice.

        Raises:
            ReplayError: as `retried`.
        """
        return self._tried(attempt, self._refused)

    def _tried(self, attempt: Callable[[RetryBudget], T], worth_another: Callable[[ReplayError, RetryBudget], bool]) -> T:
        budget = RetryBudget(self.timeout)
        while True:
            try:
                result = attempt(budget)
            except ReplayError as error:
                if isinstance(error, DeadlineError) and budget.refused is not None:
                    raise budget.refused from None
                if not worth_another(error, budget):
                    raise
                retry_after = error.retry_after if isinstance(error, OverloadedError) else None
            else:
                self._note(away=False)
                self._met, self._overload = True, None
                return result
            if budget.lost and budget.over:
                raise ServerUnavailableError(budget.lost)
            self.wait(budget.pause() if retry_after is None else budget.overload_pause(retry_after))

    def _worth_another(self, error: ReplayError, budget: RetryBudget, for_rows: bool) -> bool:
        """Whether another attempt follows one that ended with this error, if there is time left."""
        if isinstance(error, ServerUnavailableError):
            budget.lost = str(error)
            if not error.is_past:
                self._note(away=True, why=budget.lost)
            return self._met or not isinstance(error, TLSError)
        if self._refused(error, budget):
            return True
        if isinstance(error, EmptyTableError):
            budget.lost = ""
            return for_rows and not budget.over
        if isinstance(error, RateLimitedError):
            budget.lost = ""
            return budget.outlasts_wait
        return bool(budget.lost) and isinstance(error, (StreamLimitError, DeadlineError))

    def _refused(self, error: ReplayError, budget: RetryBudget) -> bool:
        """Whether the server refused an attempt before it looked at it, and may let the next one pass."""
        if isinstance(error, OverloadedError) and error.retry_after is not None:
            budget.lost, budget.refused = "", error
            self._note(away=False)
            self._note_overload(error)
            return budget.has_time_for(error.retry_after)
        return isinstance(error, UnauthenticatedError) and self._has_new_token()

    def _has_new_token(self) -> bool:
        """Whether the file of the token has another one by now, which is used from now on."""
        try:
            renewed = self.access.renewed()
        except InvalidArgumentError as error:
            log.warning("server %s does not take the token, and there is no new one: %s", self.address, error)
            return False
        changed, self.access = renewed != self.access, renewed
        return changed

    def _note_overload(self, error: OverloadedError) -> None:
        """Logs one line when the server begins to refuse calls, however many calls notice it."""
        noted, self._overload = self._overload, error.with_traceback(None)
        if noted is None:
            log.warning("server %s has too much to do (%s); calls wait up to %g s for it", self.address, error, self.timeout)

    def _note(self, *, away: bool, why: str = "") -> None:
        """Logs one line when the server went away, and one when it is back, however many calls and threads notice it."""
        if away is self._away or self._closed.is_set():
            return
        with self._noting:
            changed, self._away = self._away is not away, away
            self.returns += changed and not away
        if changed and away:
            log.warning("%s; calls wait up to %g s for it", why, self.timeout)
        elif changed:
            log.warning("server %s is back", self.address)

    @property
    def server_wait(self) -> float:
        """Seconds that the server may wait for a rate limiter within a call that is held open; see `RetryBudget.server_wait`."""
        return RetryBudget(self.timeout).server_wait

    def wait(self, seconds: float) -> None:
        """Waits for so long, or until the connection is closed."""
        try:
            self._closed.wait(seconds)
        except RuntimeError as error:
            raise interrupt_behind(error) from None

    def unary(self, name: str, request: Message | bytes, budget: RetryBudget | None = None) -> Any:
        """The answer to a call that has one request and one answer."""
        self.check_open()
        seconds = self.timeout if budget is None else budget.left
        span = begin_span(SERVICE.full_name, name, self.access.metadata)
        with self._translated():
            if span is None:
                return self._calls[name](request, timeout=seconds, metadata=self.access.metadata)
            with span:
                return self._calls[name](request, timeout=seconds, metadata=span.metadata)

    def stream(self, name: str, requests: Message | Iterator[Message | bytes], budget: RetryBudget | None = None) -> Answers:
        """Opens a call that streams its answers. Each answer may take `timeout` seconds, or, with a `budget`, what is left of that."""
        self.check_open()
        if not isinstance(requests, Iterator):  # gRPC needs no thread.
            return self._opened(name, requests, budget)
        answers = self._opened(name, in_own_thread(requests), budget)
        answers.note_end()
        return answers

    def _opened(self, name: str, requests: Message | Iterator[Message | bytes], budget: RetryBudget | None) -> Answers:
        span = begin_span(SERVICE.full_name, name, self.access.metadata)
        with self._translated():
            call = self._calls[name](requests, metadata=self.access.metadata if span is None else span.metadata)
            if span is not None:
                span.end_with(call)
            return Answers(call, self, budget)

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed.is_set()

    def close(self) -> None:
        """Ends all calls. Closing twice is allowed; in a fork of the process that opened it nothing happens."""
        if self.owner.is_here:
            self._closed.set()
            self._end()

    def check_open(self) -> None:
        """Passes where calls can be made.

        Raises:
            ForkedError, ClosedError: where they cannot.
        """
        self.owner.check()
        if self._closed.is_set():
            raise ClosedError(f"the buffer at {self.address} is closed")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        channel = self._channel
        try:
            yield
        except grpc.RpcError as error:
            raise self.error(error) from None
        except ValueError:  # So gRPC says that the channel was closed since that was checked.
            self.check_open()
            if channel is not self._channel:  # By `move`: the call was made over the one before.
                raise self.lost_error("is not there any more") from None
            raise
        except BaseException as error:  # noqa: BLE001 - it is raised again, or the interrupt behind it.
            self.release_locks(None)
            raise interrupt_behind(error) from None

    def error(self, error: Any) -> ReplayError:
        """The error that a call which gRPC ended with `error` raises."""
        metadata = error.trailing_metadata() or ()
        found = from_status(error.code(), dict(metadata).get(TRAILER), printable((error.details() or "")[:MAX_DETAILS]))
        read_details(found, metadata)
        if type(found) is ResourceExhaustedError and TOO_LARGE in str(found):
            return MessageTooLargeError(str(found), limit="max_message_bytes")
        if isinstance(found, DeadlineError):
            return self.late_error()
        if isinstance(found, CancelledError):  # The client's own doing, or that of a server that stops.
            return ClosedError(f"the buffer at {self.address} was closed") if self._closed.is_set() else self.lost_error("ended the call")
        if type(found) is ServerUnavailableError:
            return unavailable(self.address, str(found), self.access)  # Of gRPC itself, or of a server that stops.
        if isinstance(found, InternalError):
            found.args = (f"server {self.address}: {found}{_named(found)}",)
        return found

    def release_locks(self, call: Any) -> None:
        """Gives back the locks of a call and of the channel that this thread still has, because Ctrl-C came as one was taken or given back.

        gRPC's threads take them too. Without this, they, all calls of the channel and `close` would wait for ever.
        """
        self.disturbed.set()
        inner = gc.get_referents(getattr(self._channel, "_channel", None))  # The channel's lock is an attribute that gRPC's C does not show.
        for condition in (getattr(getattr(call, "_state", None), "condition", None), *gc.get_referents(*inner)):
            if isinstance(condition, threading.Condition):
                with suppress(RuntimeError):  # So a lock says that this thread does not have it.
                    while True:
                        condition.release()

    def gone_error(self) -> ReplayError:
        """The error for a server that does not take what waits: it has too much to do, or it is not there."""
        overload = self._overload
        return self.lost_error("is lost, and did not come back") if overload is None else copy(overload)  # Each thread raises one of its own.

    def lost_error(self, how: str) -> ServerUnavailableError:
        """The error for a call that the server ended before its time."""
        return ServerUnavailableError(f"server {self.address} {how}")

    def late_error(self) -> DeadlineError:
        """The error for an answer that did not come."""
        return DeadlineError(f"server {self.address} did not answer within {self.timeout} s")


def _named(error: ReplayError) -> str:
    """The name of a call in the server's log, for an error whose text does not say it."""
    return "" if not error.request_id or error.request_id in str(error) else f" (request {error.request_id} in its log)"


def _close_channel(channel: grpc.Channel, owner: Owner, disturbed: threading.Event) -> None:
    if not owner.is_here:
        return
    if not disturbed.is_set():
        channel.close()
        return
    with suppress(RuntimeError):  # At the interpreter's end there are no new threads, and nothing to wait for.
        start_reader(channel.close).join(EXIT_SECONDS)  # It waits for all calls; an interrupt may have left one that never ends.


_open: weakref.WeakSet[Connection] = weakref.WeakSet()


@atexit.register
def _end_at_exit() -> None:
    """Ends all calls, and waits for the threads that are inside gRPC: one that is still there when the interpreter goes would abort the process."""
    for connection in list(_open):
        connection.close()
    close_watchdog()
    await_call_threads(EXIT_SECONDS)


_ARITY = {False: "unary", True: "stream"}


def _multi_callable(channel: grpc.Channel, method: Any) -> Callable[..., Any]:
    make = getattr(channel, f"{_ARITY[method.client_streaming]}_{_ARITY[method.server_streaming]}")
    response_type = GetMessageClass(method.output_type)
    # A message with a block stays as it came: tdreplay.framing takes it apart without a copy.
    decode = None if "block" in method.output_type.fields_by_name else response_type.FromString
    call: Callable[..., Any] = make(f"/{SERVICE.full_name}/{method.name}", request_serializer=_serialize, response_deserializer=decode)
    return call


def _serialize(request: Message | bytes) -> bytes:
    return request if isinstance(request, bytes) else request.SerializeToString()
