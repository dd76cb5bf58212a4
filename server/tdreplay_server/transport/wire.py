"""How the service's methods meet gRPC: framing, errors, and the room that there is for calls. No method knows of any of them.

The methods are registered by hand, not through the generated code, because the messages that carry a block are framed without the protobuf runtime
(`tdreplay.framing`). Which ones there are, and which of them stream, comes from the proto's descriptor.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from tdreplay.block import Bytes
from tdreplay.errors import TRAILER, InvalidArgumentError, ReplayError, ServerUnavailableError
from tdreplay.framing import split
from tdreplay_server.system.logs import log
from tdreplay_server.transport.calls import Call, Calls, ClientGoneError
from tdreplay_server.transport.stream_slots import StreamSlots
from tdreplay_server.transport.texts import details_of

__all__ = ["LONG_LIVED", "Handlers", "Request"]

LONG_LIVED = frozenset({"AddBatch", "Sample", "SampleAll", "Epoch", "Checkpoint", "Watch"})
"""The calls that last as long as the client likes, and so need a slot."""

REFUSALS = 2
"""Threads that refuse calls for which there is no room. It takes them no time."""


class Request(NamedTuple):
    """A message as a method gets it: its fields, and its block, a view of the received bytes."""

    head: Any
    block: Bytes


class Handlers(grpc.GenericRpcHandler):
    """Serves every call of a proto's service, each by the method of that name of `service`.

    A method takes a `Request` (or an iterator of them, where the client streams) and the context; it gives a message (or an iterator of messages,
    or of bytes that are framed already). What it raises becomes the call's status.

    Args:
        descriptor: of the proto's service.
        service: has the methods.
        calls: says whether there is room for a call when it arrives, and watches over it.
        slots: room for long-lived streams among them.
        workers: the threads of these calls; None: those of the server.
    """

    def __init__(self, descriptor: Any, service: object, calls: Calls, slots: StreamSlots, workers: ThreadPoolExecutor | None = None) -> None:
        self._calls, self._slots, self._workers = calls, slots, workers
        self._handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]] = {
            f"/{descriptor.full_name}/{method.name}": self._handler(method, getattr(service, method.name)) for method in descriptor.methods
        }
        self._refusal = _handler_of(partial(self._refuse), ThreadPoolExecutor(REFUSALS, thread_name_prefix="tdreplay-refusal"), streams=True)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The handler of a call that arrives, in gRPC's own thread: nothing here waits."""
        handler = self._handlers.get(handler_call_details.method)
        return handler if handler is None or self._calls.admit() else self._refusal

    def _refuse(self, received: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        with _statuses(context, "a call for which there is no room"):
            raise ServerUnavailableError(f"{self._calls.limit} calls (max_workers) run on this server already: try again, or raise the setting")
        yield b""  # It is a generator, as handlers of streams are.

    def _handler(self, method: Any, act: Callable[..., Any]) -> grpc.RpcMethodHandler[Any, Any]:
        """The handler of a method. It always takes a stream of requests: what a call is that has sent none yet can be seen, and ended, then."""
        request_type, answer_type = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
        one = not method.client_streaming

        def decode(message: bytes) -> Request:
            return Request(*split(message, request_type))

        def requested(received: Any, call: Call) -> Any:
            requests = map(decode, self._calls.requests(received, call))
            return _only(requests, request_type) if one else requests

        def unary(received: Any, context: grpc.ServicerContext) -> Message:
            with _statuses(context, method.name), self._calls.running(context, patient=False) as call:
                answer: Message = act(requested(received, call), context)
                return answer
            return answer_type()  # The client is gone: nobody gets it.

        def short_stream(received: Any, context: grpc.ServicerContext) -> Iterator[Message | bytes]:
            with _statuses(context, method.name), self._calls.running(context, patient=False) as call:
                yield from self._calls.taken(act(requested(received, call), context), call)

        def stream(received: Any, context: grpc.ServicerContext) -> Iterator[Message | bytes]:
            with _statuses(context, method.name), self._calls.running(context, patient=not one) as call:
                # It takes a slot when its first request is there.
                first, request = _peeked(requested(received, call), one=one)
                with self._slots.taken(standing=getattr(first, "standing", False)):
                    yield from self._calls.taken(act(request, context), call)

        behaviour = unary if not method.server_streaming else stream if method.name in LONG_LIVED else short_stream
        return _handler_of(behaviour, self._workers, streams=method.server_streaming)


def _handler_of(behaviour: Any, workers: ThreadPoolExecutor | None, *, streams: bool) -> grpc.RpcMethodHandler[Any, Any]:
    if workers is not None:
        behaviour.experimental_thread_pool = workers
    make = grpc.stream_stream_rpc_method_handler if streams else grpc.stream_unary_rpc_method_handler
    handler: grpc.RpcMethodHandler[Any, Any] = make(behaviour, request_deserializer=None, response_serializer=_serialize)
    return handler


def _peeked(requests: Any, *, one: bool) -> tuple[Any, Any]:
    """The fields of the first request, and all requests. No fields where there is none."""
    if one:
        return requests.head, requests
    first = next(requests, None)
    return (None, iter(())) if first is None else (first.head, itertools.chain([first], requests))


def _only(requests: Iterator[Request], request_type: type[Message]) -> Request:
    request = next(requests, None)
    if request is None:
        raise InvalidArgumentError(f"the call ended before its request, a {request_type.DESCRIPTOR.name}, came")
    return request


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
