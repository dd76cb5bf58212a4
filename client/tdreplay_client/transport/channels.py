"""Every channel of the client is made here: the address is checked, and the settings are the same."""

from __future__ import annotations

import json

import grpc
from grpc.experimental import ChannelOptions

from tdreplay.limits import MAX_MESSAGE_BYTES, message_options
from tdreplay_client.transport.access import OPEN, Access
from tdreplay_client.transport.addresses import check_target, proxy_options

__all__ = ["SERVICE_NAME", "open_channel"]

SERVICE_NAME = "tdreplay.v1.ReplayBufferService"
"""The service's name in the proto. `tdreplay health`, which runs every few seconds, does not load the proto for it."""

IDEMPOTENT = ("Add", "SampleBatch", "SampleByIndex", "SampleAll", "Describe", "CreateTable", "ListTables")
"""The calls with one request that gRPC may send again by itself: inserts are numbered, so that they are stored once."""

# Short: what lasts longer, as a server that starts again does, is `Connection.retried`'s, which knows how much time is left.
RETRIES = {"maxAttempts": 5, "initialBackoff": "0.02s", "maxBackoff": "0.1s", "backoffMultiplier": 2, "retryableStatusCodes": ["UNAVAILABLE"]}
SERVICE_CONFIG = json.dumps(
    {"methodConfig": [{"name": [{"service": SERVICE_NAME, "method": method} for method in IDEMPOTENT], "retryPolicy": RETRIES}]}
)


def open_channel(address: str, access: Access = OPEN) -> grpc.Channel:
    """A channel to the server at `address`. It connects when it is used. The token of `access` is not the channel's: it goes with each call.

    Raises:
        InvalidArgumentError: the address breaks its rule, or a file of TLS cannot be read.
    """
    target = check_target(address)
    if access.tls is None:
        return grpc.insecure_channel(target, options=_options(target))
    name = [("grpc.ssl_target_name_override", access.tls.server_name)] if access.tls.server_name else []
    return grpc.secure_channel(target, access.tls.credentials(), options=[*_options(target), *name])


def _options(address: str) -> list[tuple[str, int | str]]:
    return [
        *message_options(),
        *proxy_options(address),
        # Reads an answer in the thread that asks for it: 42 us a message instead of 74.
        (ChannelOptions.SingleThreadedUnaryStream, 1),
        # A connection of its own, not one that is shared with other buffers in the process, which would share its flow control.
        ("grpc.use_local_subchannel_pool", 1),
        # A server that is started again is found within a second or so.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1000),
        ("grpc.max_reconnect_backoff_ms", 1000),
        # So is one that comes back at another address: gRPC asks for a name no more than twice a minute otherwise.
        ("grpc.dns_min_time_between_resolutions_ms", 1000),
        # A network that is dead, and a host that is gone, are noticed.
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.ping_timeout_ms", 10_000),  # What gRPC waits for the answer to a ping: a minute, unless it is told so.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.enable_retries", 1),
        ("grpc.service_config", SERVICE_CONFIG),
        # Without it requests above 256 KiB are sent once.
        ("grpc.per_rpc_retry_buffer_size", MAX_MESSAGE_BYTES + (1 << 20)),
    ]
