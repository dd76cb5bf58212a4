"""Which errors of a server say that it did nothing."""

from __future__ import annotations

import grpc

from tdreplay.errors import ReplayError

__all__ = ["stored_nothing"]

# Who calls is looked at before anything else is, so such a refusal stored nothing. But the block may have gone out before, over a call that was
# lost: tokens are revoked at any time, and whether rows fit their table is not. So these two statuses are none of them: the block keeps its id.
REFUSALS = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)


def stored_nothing(error: ReplayError) -> bool:
    """Whether the server refused a block. After any other error it may have stored the block."""
    return error.code in REFUSALS
