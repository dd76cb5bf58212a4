"""How the service's methods meet gRPC: framing, errors, stream slots. No method knows of any of them.

The methods are registered by hand, not through the generated code, because the messages that carry a block are framed without the protobuf runtime
(`tdreplay.framing`). Which ones there are, and which of them stream, comes from the proto's descriptor.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from tdreplay.block import Bytes
from tdreplay.errors import TRAILER, ReplayError, StreamLimitError
from tdreplay.framing import split
from tdreplay.v1 import replay_buffer_pb2
from tdreplay_server.logs import log

__all__ = ["Request", "StreamSlots", "handlers"]

SERVICE = replay_buffer_pb2.DESCRIPTOR.services_by_name["ReplayBufferService"]
LONG_LIVED = frozenset({"AddBatch", "Sample", "SampleAll", "Epoch"})
"""The calls that last as long as the client likes, and so need a slot."""

MAX_DETAILS = 1000  # The status travels in a header, and gRPC drops headers above 8 KiB.


class Request(NamedTuple):
    """A message as a method gets it: its fields, and its block, a view of the received bytes."""

    head: Any
    block: Bytes


class StreamSlots:
    """Room for `limit` long-lived streams, fewer than there are workers, so that they cannot starve the other calls."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._free = threading.Semaphore(limit)

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Holds a slot.

        Raises:
            StreamLimitError: none is free.
        """
        if not self._free.acquire(blocking=False):
            raise StreamLimitError(f"{self._limit} streams (max_streams) are open on this server; close one, or raise the setting")
        try:
            yield
        finally:
            self._free.release()


def handlers(service: object, slots: StreamSlots) -> grpc.GenericRpcHandler:
    """The gRPC handlers of every call of the proto, each served by the method of that name of `service`.

    A method takes a `Request` (or an iterator of them, where the client streams) and the context; it gives a message (or an iterator of messages,
    or of bytes that are framed already). What it raises becomes the call's status.
    """
    return grpc.method_handlers_generic_handler(
        SERVICE.full_name,
        {method.name: _handler(method, getattr(service, method.name), slots) for method in SERVICE.methods},
    )


def _handler(method: Any, act: Callable[..., Any], slots: StreamSlots) -> grpc.RpcMethodHandler[Any, Any]:
    request_type = GetMessageClass(method.input_type)

    def decode(message: bytes) -> Request:
        return Request(*split(message, request_type))

    def decoded(received: Any) -> Any:
        return map(decode, received) if method.client_streaming else decode(received)

    def unary(received: Any, context: grpc.ServicerContext) -> Message:
        with _statuses(context, method.name):
            answer: Message = act(decoded(received), context)
            return answer
        raise AssertionError("abort raises")

    def stream(received: Any, context: grpc.ServicerContext) -> Iterator[Message | bytes]:
        with _statuses(context, method.name), slots.taken():
            yield from act(decoded(received), context)

    def short_stream(received: Any, context: grpc.ServicerContext) -> Iterator[Message | bytes]:
        with _statuses(context, method.name):
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
        log.info("call refused", call=call, error=type(error).__name__, details=str(error)[:MAX_DETAILS])
        context.set_trailing_metadata(((TRAILER, type(error).__name__),))
        context.abort(error.code, str(error)[:MAX_DETAILS])
    except grpc.RpcError:
        raise  # The client is gone: there is nobody to tell.
    except Exception:  # noqa: BLE001 - a bug: the log gets all of it, the client none.
        log.exception("call failed", call=call)
        context.abort(grpc.StatusCode.INTERNAL, "internal error; the server's log has the details")
