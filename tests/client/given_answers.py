"""A server whose calls are functions of a test: one that answers wrongly, or as an older version."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf.message_factory import GetMessageClass

from tdreplay.v1 import replay_buffer_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["ReplayBufferService"]


@contextmanager
def answering_server(**calls: Callable[..., Any]) -> Iterator[str]:
    """Serves these calls, and no others; gives the address."""
    handlers = {}
    for name, call in calls.items():
        method = SERVICE.methods_by_name[name]
        kinds = ["stream" if streams else "unary" for streams in (method.client_streaming, method.server_streaming)]
        make = getattr(grpc, f"{kinds[0]}_{kinds[1]}_rpc_method_handler")
        handlers[name] = make(call, GetMessageClass(method.input_type).FromString, GetMessageClass(method.output_type).SerializeToString)
    with ThreadPoolExecutor(8) as workers:
        made = grpc.server(workers)
        made.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE.full_name, handlers),))
        port = made.add_insecure_port("127.0.0.1:0")
        made.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            made.stop(0).wait()
