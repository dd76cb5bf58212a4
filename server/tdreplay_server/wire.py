"""How the service's methods meet gRPC: framing, errors, stream slots. No method knows of any of them.

The methods are registered by hand, not through the generated code, because the messages that carry a block are framed without the protobuf runtime
(`tdreplay.framing`). Which ones there are, and which of them stream, comes from the proto's descriptor.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from tdreplay.block import Bytes
from tdreplay.errors import TRAILER, ReplayError, StreamLimitError
from tdreplay.framing import split
from tdreplay.v1 import replay_buffer_pb2
from tdreplay_server.logs import log
from tdreplay_server.running import ClientGoneError, RunningCalls
from tdreplay_server.texts import details_of

__all__ = ["Request", "StreamSlots", "handlers"]

SERVICE = replay_buffer_pb2.DESCRIPTOR.services_by_name["ReplayBufferService"]
LONG_LIVED = frozenset({"AddBatch", "Sample", "SampleAll", "Epoch", "Checkpoint"})
"""The calls that last as long as the client likes, and so need a slot."""


class Request(NamedTuple):
    """A message as a method gets it: its fields, and its block, a view of the received bytes."""

    head: Any
    block: Bytes


@dataclass
class Slot:
    """A place for one long-lived stream.

    Attributes:
        standing: whether it is one of those for standing calls.
    """

    standing: bool = False


class StreamSlots:
    """Room for long-lived streams, fewer than there are workers, so that they cannot starve the other calls.

    Standing calls, which their clients hold open between single calls and can do without, have room of their own.

    Args:
        limit: how many streams there may be.
        standing_limit: how many standing calls beside them.
    """

    def __init__(self, limit: int, standing_limit: int) -> None:
        self._limit = limit
        self._free = {False: limit, True: standing_limit}
        self._lock = threading.Lock()

    @contextmanager
    def taken(self) -> Iterator[Slot]:
        """Holds a slot, as of a stream that is not a standing call, until its first request says so.

        Raises:
            StreamLimitError: none is free.
        """
        self._take(standing=False)
        slot = Slot()
        try:
            yield slot
        finally:
            with self._lock:
                self._free[slot.standing] += 1

    def _take(self, standing: bool) -> None:
        with self._lock:
            if not self._free[standing]:
                which = "as many standing calls as there is room for are" if standing else f"{self._limit} streams (max_streams) are"
                raise StreamLimitError(f"{which} open on this server; close one, or raise the setting")
            self._free[standing] -= 1

    def placed(self, requests: Iterator[Request], slot: Slot) -> Iterator[Request]:
        """The requests of a call that holds a slot.

        Raises:
            StreamLimitError: it is a standing call, and there is no room for another one.
        """
        for request in requests:
            if getattr(request.head, "standing", False) and not slot.standing:
                self._take(standing=True)
                with self._lock:
                    self._free[False] += 1
                slot.standing = True
            yield request


def handlers(service: object, slots: StreamSlots, running: RunningCalls) -> grpc.GenericRpcHandler:
    """The gRPC handlers of every call of the proto, each served by the method of that name of `service`.

    A method takes a `Request` (or an iterator of them, where the client streams) and the context; it gives a message (or an iterator of messages,
    or of bytes that are framed already). What it raises becomes the call's status.
    """
    return grpc.method_handlers_generic_handler(
        SERVICE.full_name,
        {method.name: _handler(method, getattr(service, method.name), slots, running) for method in SERVICE.methods},
    )


def _handler(method: Any, act: Callable[..., Any], slots: StreamSlots, running: RunningCalls) -> grpc.RpcMethodHandler[Any, Any]:
    request_type = GetMessageClass(method.input_type)

    def decode(message: bytes) -> Request:
        return Request(*split(message, request_type))

    def decoded(received: Any) -> Any:
        return map(decode, received) if method.client_streaming else decode(received)

    def unary(received: Any, context: grpc.ServicerContext) -> Message:
        with _statuses(context, method.name), running.call():
            answer: Message = act(decoded(received), context)
            return answer
        raise AssertionError("abort raises")

    def stream(received: Any, context: grpc.ServicerContext) -> Iterator[Message | bytes]:
        with _statuses(context, method.name), running.call(), slots.taken() as slot:
            requests = decoded(received)
            yield from act(slots.placed(running.requests(requests, context), slot) if method.client_streaming else requests, context)

    def short_stream(received: Any, context: grpc.ServicerContext) -> Iterator[Message | bytes]:
        with _statuses(context, method.name), running.call():
            yield from act(decoded(received), context)

    make = _MAKERS[method.client_streaming, method.server_streaming]
    behaviour = unary if not method.server_streaming else stream if method.name in LONG_LIVED else short_stream
    handler: grpc.RpcMethodHandler[Any, Any] = make(behaviour, request_deserializer=None, response_serializer=_serialize)
    return handler


_MAKERS = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def _serialize(answer: Message | bytes) -> bytes:
    return answer if isinstance(answer, bytes) else answer.SerializeToString()


@contextmanager
def _statuses(context: grpc.ServicerContext, call: str) -> Iterator[None]:
    """Ends the call with the status of the error that is raised in it."""
    try:
        yield
    except ReplayError as error:
        details = details_of(error)
        log.info("call refused", call=call, error=type(error).__name__, details=details)
        context.set_trailing_metadata(((TRAILER, type(error).__name__),))
        context.abort(error.code, details)
    except (grpc.RpcError, ClientGoneError) as error:
        log.debug("the client is gone: there is nobody to tell", call=call, error=repr(error))
    except Exception:  # noqa: BLE001 - a bug: the log gets all of it, the client none.
        log.error("call failed", call=call, exc_info=True)  # Not `exception`: the standard library would write the traceback once more.
        context.abort(grpc.StatusCode.INTERNAL, "internal error; the server's log has the details")
