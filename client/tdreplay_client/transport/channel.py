"""The connection to a server: calls with deadlines, and gRPC's errors as tdreplay's."""

from __future__ import annotations

import atexit
import gc
import logging
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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
    ReplayError,
    ServerUnavailableError,
    StreamLimitError,
    from_status,
)
from tdreplay.limits import check_seconds
from tdreplay.processes import Owner, keep_in_forks
from tdreplay.texts import MAX_DETAILS, printable
from tdreplay.v1 import replay_buffer_pb2
from tdreplay_client.transport.addresses import check_target
from tdreplay_client.transport.channel_options import channel_options
from tdreplay_client.transport.retry_budget import GRACE_SECONDS, RetryBudget

__all__ = ["Answers", "Connection", "end_call", "start_reader"]

log = logging.getLogger("tdreplay")
SERVICE = replay_buffer_pb2.DESCRIPTOR.services_by_name["ReplayBufferService"]
EXIT_SECONDS = 1.0
NOTICE_SECONDS = 0.2
T = TypeVar("T")


class Connection:
    """A channel to one server.

    Attributes:
        owner: the process that may use it: gRPC does not survive a fork.
        disturbed: set when gRPC was interrupted (Ctrl-C).

    Args:
        address: HOST:PORT or unix:PATH.
        timeout: seconds that a call may wait for the server: to answer, in a stream with the next message, or to come back. None: a year.

    Raises:
        InvalidArgumentError: one of them breaks its rule.
    """

    def __init__(self, address: str, timeout: SupportsFloat | None) -> None:
        self.address, self.timeout = check_target(address), check_seconds(timeout, "timeout")
        self.owner = Owner(f"the buffer at {self.address}", "gRPC does not survive a fork, so start such a process by spawn")
        self._away, self._noting = False, threading.Lock()
        self.disturbed = threading.Event()
        self._channel = grpc.insecure_channel(self.address, options=channel_options(self.address))
        self._calls = {method.name: self._multi_callable(method) for method in SERVICE.methods}
        self._watchdog = _Watchdog()
        self._closed = threading.Event()
        self._end = weakref.finalize(self, _close_channel, self._channel, self.owner, self.disturbed)
        keep_in_forks(self)
        _open.add(self)

    def _multi_callable(self, method: Any) -> Callable[..., Any]:
        make = getattr(self._channel, f"{_ARITY[method.client_streaming]}_{_ARITY[method.server_streaming]}")
        response_type = GetMessageClass(method.output_type)
        # A message with a block stays as it came: tdreplay.framing takes it apart without a copy.
        decode = None if "block" in method.output_type.fields_by_name else response_type.FromString
        call: Callable[..., Any] = make(f"/{SERVICE.full_name}/{method.name}", request_serializer=_serialize, response_deserializer=decode)
        return call

    def repeated(self, attempt: Callable[[RetryBudget], T], *, for_rows: bool = False) -> T:
        """What `attempt` gives: made again while the server cannot be reached, until its budget is over.

        It must be something that may be done twice. A server that came back may have no room for streams yet; that is waited for too, and so are
        the first rows of the table, `for_rows`.

        Raises:
            ServerUnavailableError: the server did not come back in time.
            DeadlineError: it was there, and did not answer in time.
            EmptyTableError: no row came in time.
            ClosedError: the connection was closed meanwhile.
        """
        budget = RetryBudget(self.timeout)
        while True:
            try:
                result = attempt(budget)
            except ReplayError as error:
                if not self._worth_another(error, budget, for_rows):
                    raise
            else:
                self._note(away=False)
                return result
            if budget.lost and budget.over:
                raise ServerUnavailableError(budget.lost)
            self._closed.wait(budget.pause())

    def _worth_another(self, error: ReplayError, budget: RetryBudget, for_rows: bool) -> bool:
        """Whether an attempt that ended so is made again, if there is time left."""
        if isinstance(error, ServerUnavailableError):
            budget.lost = str(error)
            self._note(away=True, why=budget.lost)
            return True
        if isinstance(error, EmptyTableError):
            budget.lost = ""
            return for_rows and not budget.over
        return bool(budget.lost) and isinstance(error, (StreamLimitError, DeadlineError))

    def _note(self, *, away: bool, why: str = "") -> None:
        """Logs one line when the server went away, and one when it is back, however many calls and threads notice it."""
        if away is self._away or self._closed.is_set():
            return
        with self._noting:
            changed, self._away = self._away is not away, away
        if changed and away:
            log.warning("%s; calls wait up to %g s for it", why, self.timeout)
        elif changed:
            log.warning("server %s is back", self.address)

    def wait(self, seconds: float) -> None:
        """Waits for so long, or until the connection is closed."""
        self._closed.wait(seconds)

    def unary(self, name: str, request: Message | bytes, budget: RetryBudget | None = None) -> Any:
        """The answer to a call that has one request and one answer."""
        self.check_open()
        with self._translated():
            return self._calls[name](request, timeout=self.timeout if budget is None else budget.left)

    def stream(self, name: str, requests: Message | Iterator[Message | bytes], budget: RetryBudget | None = None) -> Answers:
        """Opens a call that streams its answers. Each of them may take `timeout` seconds, the first one as long as there is `budget`."""
        self.check_open()
        before = set(threading.enumerate())
        with self._translated():
            answers = Answers(self._calls[name](requests), self, budget)
        _threads.update(set(threading.enumerate()) - before)  # gRPC does not say which threads it starts.
        return answers

    def close(self) -> None:
        """Ends all calls. Closing twice is allowed; in a fork of the process that opened it nothing happens."""
        if self.owner.is_here:
            self._closed.set()
            self._watchdog.close()
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
        try:
            yield
        except grpc.RpcError as error:
            raise self.error(error) from None
        except ValueError:  # So gRPC says that the channel was closed since that was checked.
            self.check_open()
            raise
        except BaseException as error:  # noqa: BLE001 - it is raised again, or the interrupt behind it.
            self.let_go(None)
            raise _interrupt(error) from None

    def error(self, error: Any) -> ReplayError:
        """The error that a call which gRPC ended with `error` raises."""
        name = dict(error.trailing_metadata() or ()).get(TRAILER)
        found = from_status(error.code(), name, printable((error.details() or "")[:MAX_DETAILS]))
        if isinstance(found, DeadlineError):
            return self.late()
        if isinstance(found, CancelledError):  # The client's own doing, or that of a server that stops.
            return ClosedError(f"the buffer at {self.address} was closed") if self._closed.is_set() else self.gone("ended the call")
        if isinstance(found, (ServerUnavailableError, InternalError)):
            return type(found)(f"server {self.address}: {found}")
        return found

    def let_go(self, call: Any) -> None:
        """Gives back the locks of a call and of the channel where this thread still has them: Ctrl-C came as one was taken or given back.

        gRPC's threads, which serve all calls of a channel, take them too: they, all calls and `close` would wait for ever.
        """
        self.disturbed.set()
        inner = gc.get_referents(getattr(self._channel, "_channel", None))  # The channel's lock is an attribute that gRPC's C does not show.
        for condition in (getattr(getattr(call, "_state", None), "condition", None), *gc.get_referents(*inner)):
            if isinstance(condition, threading.Condition):
                with suppress(RuntimeError):  # So a lock says that this thread does not have it.
                    while True:
                        condition.release()

    def gone(self, how: str) -> ServerUnavailableError:
        """The error for a call that the server ended before its time."""
        return ServerUnavailableError(f"server {self.address} {how}")

    def late(self) -> DeadlineError:
        """The error for an answer that did not come."""
        return DeadlineError(f"server {self.address} did not answer within {self.timeout} s")


def _close_channel(channel: grpc.Channel, owner: Owner, disturbed: threading.Event) -> None:
    if not owner.is_here:
        return
    if not disturbed.is_set():
        channel.close()
        return
    with suppress(RuntimeError):  # At the interpreter's end there are no new threads, and nothing to wait for.
        start_reader(channel.close).join(EXIT_SECONDS)  # It waits for all calls; an interrupt may have left one that never ends.


_open: weakref.WeakSet[Connection] = weakref.WeakSet()
_threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


@atexit.register
def _end_at_exit() -> None:
    """Ends all calls, and waits for the threads that are inside gRPC: one that is still there when the interpreter goes would abort the process."""
    for connection in list(_open):
        connection.close()
    end = time.monotonic() + EXIT_SECONDS
    for thread in list(_threads):
        if thread.ident is not None:  # Else an interrupt came before it was started.
            thread.join(max(0.0, end - time.monotonic()))


class Answers(Iterator[Any]):
    """The answers of a streaming call. Closing it ends the call.

    Attributes:
        budget: how long the next answer may take; each answer renews it. None: the connection's timeout, from when it is asked for.
    """

    def __init__(self, call: Any, connection: Connection, budget: RetryBudget | None) -> None:
        self._call, self._connection, self.budget = call, connection, budget
        self._deadline: float | None = None
        self._overdue: float | None = None  # The deadline that had passed when the time was looked at last.
        self._late = False
        keep_in_forks(self)
        connection._watchdog.watch(self)

    def __next__(self) -> Any:
        answer = self._awaited(self._call.__next__)
        if self.budget is not None:
            self.budget.answered()
        return answer

    def opened(self) -> None:
        """Waits until the server accepted the call, or raises the error with which it refused it."""
        self._awaited(self._call.initial_metadata)
        if not self.active and self._awaited(self._call.code) is not grpc.StatusCode.OK:
            raise self._failure(self._call)

    def _awaited(self, step: Callable[[], Any]) -> Any:
        self._deadline = time.monotonic() + self._connection.timeout if self.budget is None else self.budget.until
        try:
            return step()
        except grpc.RpcError as error:
            raise self._failure(error) from None
        except StopIteration:
            raise
        except BaseException as error:  # noqa: BLE001 - it is raised again, or the interrupt behind it.
            self._connection.let_go(self._call)
            raise _interrupt(error) from None
        finally:
            self._deadline = None

    def unhurried(self) -> Iterator[Any]:
        """The answers, however long each takes: for a thread that reads ahead, while whoever takes what it read watches the time."""
        try:
            yield from self._call
        except grpc.RpcError as error:
            raise self._failure(error) from None

    def _failure(self, error: Any) -> ReplayError:
        # gRPC raises the call itself, and with its traceback the call would hold all that its readers' frames hold, shared memory too.
        error.__traceback__ = None
        return self._connection.late() if self._late else self._connection.error(error)

    def end_at(self, until: float) -> None:
        """The call is late at that moment (of time.monotonic), whatever it answers until then."""
        self._deadline = until

    def cancel_if_late(self, now: float) -> None:
        """Cancels the call where an answer was overdue the last time already: the first time it may be there, and this process have stood still."""
        deadline = self._deadline
        if deadline is None or now <= deadline:
            self._overdue = None
        elif self._overdue != deadline:
            self._overdue = deadline
        else:
            self._late = True
            self._call.cancel()

    def check_alive(self) -> None:
        """Passes where the call goes on for a moment: long enough for the end of a process on this host to be noticed.

        Raises:
            ServerUnavailableError: it does not.
        """
        end = time.monotonic() + NOTICE_SECONDS
        while self.active and time.monotonic() < end:
            self._connection.wait(NOTICE_SECONDS / 20)
        if not self.active:
            raise self._connection.gone("was lost")

    @property
    def active(self) -> bool:
        """Whether the call goes on, as far as is known here."""
        try:
            active: bool = self._call.is_active()
        except BaseException as error:  # noqa: BLE001 - it is raised again, or the interrupt behind it.
            self._connection.let_go(self._call)
            raise _interrupt(error) from None
        return active

    def close(self) -> None:
        """Ends the call. Closing twice is allowed; in a fork of the process that made it nothing happens."""
        if self._connection.owner.is_here:
            try:
                self._call.cancel()
            except BaseException as error:  # noqa: BLE001 - it is raised again, or the interrupt behind it.
                self._connection.let_go(self._call)
                self._call.cancel()
                raise _interrupt(error) from None


def _interrupt(error: BaseException) -> BaseException:
    """The interrupt that made a lock, which had just been given back, say that it cannot be; any other error as it is."""
    return error.__context__ if isinstance(error, RuntimeError) and isinstance(error.__context__, KeyboardInterrupt) else error


def end_call(requests: queue.SimpleQueue[Any], answers: Answers) -> None:
    """Ends a call. It waits for nothing: as a finalizer it may run in any thread, that which watches over all deadlines among them."""
    requests.put(None)
    answers.close()


def start_reader(work: Callable[..., None], *arguments: Any) -> threading.Thread:
    """Starts a thread that reads a call's answers. It is awaited when the interpreter exits."""
    reader = threading.Thread(target=work, args=arguments, name="tdreplay-reader", daemon=True)
    _threads.add(reader)
    reader.start()
    return reader


class _Watchdog:
    """Cancels streaming calls whose next answer is overdue. gRPC has deadlines for whole calls only, and a stream may last for days."""

    def __init__(self) -> None:
        self._answers: weakref.WeakSet[Answers] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    def watch(self, answers: Answers) -> None:
        with self._lock:
            self._answers.add(answers)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="tdreplay-deadlines", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while not self._closed.wait(GRACE_SECONDS):
            with self._lock:
                watched = list(self._answers)
                if not watched:
                    self._thread = None
                    return
            now = time.monotonic()
            for answers in watched:
                answers.cancel_if_late(now)
            del watched, answers

    def close(self) -> None:
        self._closed.set()


_ARITY = {False: "unary", True: "stream"}


def _serialize(request: Message | bytes) -> bytes:
    return request if isinstance(request, bytes) else request.SerializeToString()
