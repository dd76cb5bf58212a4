"""How a call of gRPC reaches its handler, behind the guards.

The handlers are registered by hand, not through the generated code, because the messages that carry a block are framed without the protobuf runtime
(`tdreplay.framing`). Which calls there are, and which of them stream, comes from the proto's descriptor.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, NoReturn, TypeAlias

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from tdreplay.errors import InvalidArgumentError, UnauthenticatedError
from tdreplay.framing import split
from tdreplay_server.transport.call import Call, Request
from tdreplay_server.transport.call_threads import CallThreads
from tdreplay_server.transport.guards.guard import Answer, Answers, Guard, guarded

__all__ = ["Dispatch", "Metadata"]

Metadata: TypeAlias = "Sequence[tuple[str, str | bytes]]"
"""What a client sends beside its requests."""
REFUSING_THREADS = 2
"""Threads for calls for which there is no room. To refuse a call takes no time."""


class _Ways(NamedTuple):
    """The handlers of a method: of calls with room; and, in threads of their own, of those without, and of those that nobody knows."""

    admitted: grpc.RpcMethodHandler[Any, Any]
    refused: grpc.RpcMethodHandler[Any, Any]
    stranger: grpc.RpcMethodHandler[Any, Any]


class Dispatch(grpc.GenericRpcHandler):
    """Serves every call of a proto's service, each by the method of that name of `service`.

    A method takes a `Request` (or an iterator of them, where the client streams) and the `Call`. It gives a message (or an iterator of messages, or
    of bytes that are framed already, where the server streams). What it raises becomes the call's status.

    gRPC itself answers calls that the proto does not have: they cost no thread, and no guard sees them.

    Args:
        descriptor: the proto's service.
        service: an object with the methods.
        guards: what stands around each call, from the outside in.
        admit: says whether there is room for a call when it arrives. It does not wait.
        threads: the threads of these calls; None: those of the server.
        calls: the names of the calls that it serves; None: all.
        strangers: says of the metadata of a call that arrives whether nobody knows its caller. Those calls are refused by `asks` in a thread of their
            own, so that however many come they take little from others.
        asks: the guards that refuse them.
    """

    def __init__(
        self,
        descriptor: Any,
        service: object,
        guards: Sequence[Guard],
        admit: Callable[[], bool],
        threads: ThreadPoolExecutor | None = None,
        calls: Collection[str] | None = None,
        strangers: Callable[[Metadata], bool] = lambda _: False,
        asks: Sequence[Guard] = (),
    ) -> None:
        self._admit, self._strangers = admit, strangers
        asking, refusing = CallThreads(1, "tdreplay-stranger"), CallThreads(REFUSING_THREADS, "tdreplay-refusal")

        def ways(method: Any) -> _Ways:
            act = getattr(service, method.name)
            return _Ways(
                _handler(method, act, guards, threads, admitted=True),
                _handler(method, act, guards, refusing, admitted=False),
                _handler(method, _refused_stranger, asks, asking, admitted=False),
            )

        self._ways = {
            f"/{descriptor.full_name}/{method.name}": ways(method) for method in descriptor.methods if calls is None or method.name in calls
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The handler of a call that arrives. gRPC asks in the one thread that takes all calls in, so nothing here waits."""
        ways = self._ways.get(handler_call_details.method)
        if ways is None:
            return None
        if self._strangers(handler_call_details.invocation_metadata or ()):
            return ways.stranger
        return ways.admitted if self._admit() else ways.refused


def _handler(
    method: Any, act: Callable[..., Any], guards: Sequence[Guard], threads: ThreadPoolExecutor | None, *, admitted: bool
) -> grpc.RpcMethodHandler[Any, Any]:
    """The handler of a method. gRPC always gives it a stream of requests: then a call that has sent none yet is seen, and can be ended."""
    answers = guarded(_acting(method, act), guards)
    request_type, answer_type = GetMessageClass(method.input_type), GetMessageClass(method.output_type)

    def decoded(message: bytes) -> Request:
        return Request(*split(message, request_type), len(message))

    def stream(received: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Answer]:
        return iter(answers(map(decoded, received), Call(context, method.name, admitted=admitted, patient=method.client_streaming)))

    def single(received: Iterator[bytes], context: grpc.ServicerContext) -> Answer:
        for answer in list(stream(received, context)):
            return answer
        return answer_type()  # The client is gone: nobody gets it.

    behaviour: Any = stream if method.server_streaming else single
    if threads is not None:
        behaviour.experimental_thread_pool = threads
    make = grpc.stream_stream_rpc_method_handler if method.server_streaming else grpc.stream_unary_rpc_method_handler
    handler: grpc.RpcMethodHandler[Any, Any] = make(behaviour, request_deserializer=None, response_serializer=_encoded)
    return handler


def _acting(method: Any, act: Callable[..., Any]) -> Callable[[Iterator[Request], Call], Answers]:
    """A method of the service as the chain calls it: with a stream of requests, for a stream of answers."""

    def requested(requests: Iterator[Request]) -> Any:
        return requests if method.client_streaming else _only(requests, method.input_type.name)

    def stream(requests: Iterator[Request], call: Call) -> Answers:
        answers: Iterator[Answer] = act(requested(requests), call)
        return answers

    def single(requests: Iterator[Request], call: Call) -> Answers:
        return (act(requested(requests), call),)

    return stream if method.server_streaming else single


def _refused_stranger(_requests: Any, _call: Call) -> NoReturn:
    """In place of a method, behind the guards that refuse strangers: no call of one comes further, also if its token was made just now."""
    raise UnauthenticatedError("nobody knew the token when the call came: try again")


def _only(requests: Iterator[Request], name: str) -> Request:
    request = next(requests, None)
    if request is None:
        raise InvalidArgumentError(f"the call ended before its request, a {name}, came")
    return request


def _encoded(answer: Message | bytes) -> bytes:
    return answer if isinstance(answer, bytes) else answer.SerializeToString()
