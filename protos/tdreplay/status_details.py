"""What an error says to programs, beside its text: google.rpc's standard details, in the trailing metadata ``grpc-status-details-bin``.

ErrorInfo names the error's class as a reason (TABLE_NOT_FOUND) and the setting that is the limit; RetryInfo says when to try again; RequestInfo has
the name of the call in the server's log. See https://google.aip.dev/193.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress

from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo, RequestInfo, RetryInfo
from google.rpc.status_pb2 import Status

from tdreplay.errors import ReplayError, ResourceExhaustedError
from tdreplay.texts import printable

__all__ = ["DETAILS_KEY", "DOMAIN", "details_of_error", "read_details", "reason_of"]

DETAILS_KEY = "grpc-status-details-bin"
DOMAIN = "tdreplay"
MAX_REQUEST_ID = 64
MAX_RETRY_SECONDS = 3600.0


def reason_of(name: str) -> str:
    """The reason that stands for an error's class: STREAM_LIMIT for StreamLimitError."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.removesuffix("Error")).upper()


def details_of_error(error: ReplayError, text: str, request_id: str) -> bytes:
    """The details of an error, encoded. `text`: what the status says."""
    limit = error.limit if isinstance(error, ResourceExhaustedError) else ""
    retry_after = error.retry_after if isinstance(error, ResourceExhaustedError) else None
    info = ErrorInfo(reason=reason_of(type(error).__name__), domain=DOMAIN, metadata={"limit": limit} if limit else {})
    status = Status(code=error.code.value[0], message=text)
    status.details.add().Pack(info)
    status.details.add().Pack(RequestInfo(request_id=request_id))
    if retry_after is not None:
        retry = RetryInfo()
        retry.retry_delay.FromNanoseconds(int(retry_after * 1e9))
        status.details.add().Pack(retry)
    encoded: bytes = status.SerializeToString()
    return encoded


def read_details(error: ReplayError, metadata: Iterable[tuple[str, str | bytes]]) -> None:
    """Notes on an error what the trailing metadata of its call has of it. What is no detail, or none that is known, is passed over.

    An error without RetryInfo says of no time that the call may pass then, whatever its class says where it is raised.
    """
    if isinstance(error, ResourceExhaustedError):
        error.retry_after = None
    encoded = next((value for key, value in metadata if key == DETAILS_KEY), b"")
    with suppress(DecodeError):
        for detail in Status.FromString(encoded if isinstance(encoded, bytes) else b"").details:
            _read(error, detail)


def _read(error: ReplayError, detail: object) -> None:
    info, request, retry = ErrorInfo(), RequestInfo(), RetryInfo()
    if detail.Unpack(request):  # type: ignore[attr-defined]
        error.request_id = printable(request.request_id[:MAX_REQUEST_ID])
    elif not isinstance(error, ResourceExhaustedError):
        return
    elif detail.Unpack(info):  # type: ignore[attr-defined]
        error.limit = printable(info.metadata.get("limit", "")[:MAX_REQUEST_ID])
    elif detail.Unpack(retry):  # type: ignore[attr-defined]
        error.retry_after = min(max(0.0, retry.retry_delay.ToNanoseconds() / 1e9), MAX_RETRY_SECONDS)
