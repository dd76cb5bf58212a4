"""A door before a real server: it lets calls pass, byte by byte, and refuses those that a test names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc

from tdreplay.errors import TRAILER, ReplayError
from tdreplay.status_details import DETAILS_KEY, details_of_error

Refusal = Callable[[str, int], "ReplayError | None"]
"""Says which error the n-th call (from 1) of a method gets; None: it passes."""


class Door(grpc.GenericRpcHandler):
    """What stands before a server.

    Attributes:
        refusal: what it says to calls.
        address: of the door.
        after_messages: how many messages of a refused call pass before it is refused.
        calls: how many calls of each method came.
        tokens: the tokens that came with them, in order.
    """

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        self.refusal: Refusal = lambda _method, _number: None
        self.after_messages = 0
        self.address = ""
        self._running: set[grpc.ServicerContext] = set()
        self.calls: Counter[str] = Counter()
        self.tokens: list[str] = []

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        method = details.method.rpartition("/")[2]

        def relay(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            self.calls[method] += 1
            self.tokens.append(str(dict(context.invocation_metadata()).get("authorization", "")).removeprefix("Bearer "))
            error = self.refusal(method, self.calls[method])
            if error is not None and not self.after_messages:
                refuse(context, error)
            behind = self._channel.stream_stream(details.method)(requests)
            context.add_callback(behind.cancel)
            self._running.add(context)
            try:
                behind.initial_metadata()
                context.send_initial_metadata(())
                for number, answer in enumerate(behind, 1):
                    yield answer
                    if error is not None and number == self.after_messages:
                        refuse(context, error)
            except grpc.RpcError as failure:
                context.set_trailing_metadata(failure.trailing_metadata())
                context.abort(failure.code(), failure.details())

        return grpc.stream_stream_rpc_method_handler(relay)

    def hang_up(self) -> None:
        """Ends all calls, as a server that goes away does."""
        while self._running:
            self._running.pop().cancel()


def refuse(context: grpc.ServicerContext, error: ReplayError) -> None:
    """Ends a call as a server does."""
    details = details_of_error(error, str(error), "request-7")
    context.set_trailing_metadata(((TRAILER, type(error).__name__), (DETAILS_KEY, details)))
    context.abort(error.code, str(error))


@contextmanager
def door_to(address: str) -> Iterator[Door]:
    """A door to the server at `address`."""
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with ThreadPoolExecutor(32) as workers, grpc.insecure_channel(address, options=options) as channel:
        door, made = Door(channel), grpc.server(workers, options=options)
        made.add_generic_rpc_handlers((door,))
        port = made.add_insecure_port("127.0.0.1:0")
        made.start()
        try:
            door.address = f"127.0.0.1:{port}"
            yield door
        finally:
            made.stop(0).wait()
