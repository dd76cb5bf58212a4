"""What a server bounds of what clients may do."""

from __future__ import annotations

from dataclasses import dataclass

from tdreplay.limits import MAX_BATCH_SIZE, MAX_HEADER_BYTES, MAX_MESSAGE_BYTES

__all__ = ["ServerLimits"]


@dataclass(frozen=True, kw_only=True)
class ServerLimits:
    """The limits, by the names of their settings; docs/limits.md says what each is for.

    Attributes:
        max_workers: calls that run at once. From so many on, those that wait for their clients make room for others.
        max_streams: long-lived streams among them.
        max_standing: standing calls among them, beside the streams.
        max_calls_per_client: calls of one client; None: three quarters of all, and all of them for those that cannot be told apart.
        max_streams_per_client: streams of one client, in the same way.
        max_connections: connections.
        max_message_bytes: bytes of one message of a client.
        max_bytes_in_flight: bytes of all requests that are worked on, and of all answers that are on their way.
        max_header_bytes: bytes of the header of an inserted block.
        max_metadata_bytes: bytes of the metadata of a call.
        max_batch_rows: rows of a sampled batch, and of an inserted block.
        max_tables: tables.
        connection_idle_seconds: how long a connection may be open without a call.
    """

    max_workers: int = 4096
    max_streams: int = 2048
    max_standing: int = 1024
    max_calls_per_client: int | None = None
    max_streams_per_client: int | None = None
    max_connections: int = 8192
    max_message_bytes: int = MAX_MESSAGE_BYTES
    max_bytes_in_flight: int = 1 << 30
    max_header_bytes: int = MAX_HEADER_BYTES
    max_metadata_bytes: int = 16 << 10
    max_batch_rows: int = MAX_BATCH_SIZE
    max_tables: int = 256
    connection_idle_seconds: float = 300.0
