"""The limits of what a single request asks for, or brings."""

from __future__ import annotations

from tdreplay.block import Block
from tdreplay.errors import MessageTooLargeError, ResourceExhaustedError
from tdreplay_server.transport.server_limits import ServerLimits

__all__ = ["check_block", "check_rows"]

PREFIX_BYTES = 8
"""What says how long the header is. It is before it."""


def check_rows(limits: ServerLimits, rows: int) -> None:
    """Passes where a batch may have so many rows.

    Raises:
        ResourceExhaustedError: it may not, however often it is asked for.
    """
    if rows > limits.max_batch_rows:
        raise ResourceExhaustedError(
            f"a batch of {rows} rows: this server lets batches have {limits.max_batch_rows} rows (max_batch_rows)", limit="max_batch_rows"
        )


def check_block(limits: ServerLimits, block: Block) -> None:
    """Passes where an inserted block may be as large as it is.

    Raises:
        ResourceExhaustedError: it has too many rows.
        MessageTooLargeError: its header is too large.
    """
    check_rows(limits, block.rows)
    size = len(block.header.header) - PREFIX_BYTES
    if size > limits.max_header_bytes:
        raise MessageTooLargeError(
            f"the header of a block ({size} bytes) must be at most {limits.max_header_bytes} bytes (max_header_bytes)", limit="max_header_bytes"
        )
