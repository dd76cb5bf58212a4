"""Every error that tdreplay raises on purpose: one tree, one gRPC status each, and the maps there and back.

Each class names its status in ``code``. A server ends a failed call with that status, and puts the class's name into the trailing metadata. The
client raises the same class again (`from_status`), with what else the error says to programs, which `tdreplay.status_details` encodes. If a status
has no name, as one from gRPC itself, the client raises the class that stands for the status.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import grpc

if TYPE_CHECKING:
    from tensordict import TensorDict

__all__ = [
    "CancelledError",
    "ClosedError",
    "CodecError",
    "CorruptDataError",
    "DeadlineError",
    "DirectoryInUseError",
    "EmptyTableError",
    "EpisodeError",
    "EpisodeNotFoundError",
    "FailedPreconditionError",
    "FieldNotFoundError",
    "ForkedError",
    "InternalError",
    "InvalidArgumentError",
    "MessageTooLargeError",
    "MissingRowsError",
    "NoPrioritiesError",
    "NoTrajectoriesError",
    "OtherSettingsError",
    "OverloadedError",
    "OverwrittenError",
    "PermissionDeniedError",
    "RateLimitedError",
    "ReplayError",
    "ResourceExhaustedError",
    "RowIdError",
    "SchemaError",
    "SequenceError",
    "ServerUnavailableError",
    "SlotIndexError",
    "StorageError",
    "StreamLimitError",
    "TLSError",
    "TableChangedError",
    "TableExistsError",
    "TableNotFoundError",
    "TokenError",
    "UnauthenticatedError",
    "UnauthorizedError",
    "UnimplementedError",
    "error_class",
    "from_status",
    "note_of_closing",
]

TRAILER = "tdreplay-error"
"""The key of the trailing metadata that names the error's class."""

RETRY_SECONDS = 0.5
"""After how many seconds a call is worth another try that a server refused because it had too much to do."""


class ReplayError(Exception):
    """Base of the tree. ``str(error)`` says the value and the rule that it broke.

    Attributes:
        rows: rows that were not acknowledged, a TensorDict of batch size [n, ...], if a writer raised the error. Else None.
        request_id: the call's name in the server's log; '': the error is not a server's, or of an older one.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN
    rows: TensorDict | None = None
    request_id: str = ""

    # `KeyError.__str__` would show the text in quotes, and one class below has KeyError as a base.
    __str__ = Exception.__str__


class InvalidArgumentError(ReplayError, ValueError):
    """An argument breaks a rule, whatever the state of the table."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class SchemaError(InvalidArgumentError):
    """A field is missing, extra, misshapen, or of another dtype than the table's."""


class CodecError(InvalidArgumentError):
    """Bytes are not a block, or a TensorDict cannot become one."""


class FieldNotFoundError(InvalidArgumentError, KeyError):
    """``fields`` names a field that the table does not have."""


class TokenError(InvalidArgumentError):
    """A token for ``load_state_dict`` is none, or is one of another table, or of an iterator with other arguments."""


class SlotIndexError(ReplayError, IndexError):
    """An index names a slot that holds no live row, or with a view no step whose window is there."""

    code = grpc.StatusCode.OUT_OF_RANGE


class RowIdError(ReplayError, IndexError):
    """A row id stands for a row that was never inserted. Nothing changed."""

    code = grpc.StatusCode.OUT_OF_RANGE


class TableNotFoundError(ReplayError, LookupError):
    """The server has no table of that name."""

    code = grpc.StatusCode.NOT_FOUND


class EpisodeNotFoundError(ReplayError, LookupError):
    """The table has no step of that episode, or none any more."""

    code = grpc.StatusCode.NOT_FOUND


class TableExistsError(ReplayError):
    """The table is there already, with other settings."""

    code = grpc.StatusCode.ALREADY_EXISTS


class FailedPreconditionError(ReplayError):
    """The table's state does not allow the call."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class EmptyTableError(FailedPreconditionError):
    """The table holds no row to read."""


class MissingRowsError(FailedPreconditionError):
    """Rows are needed that are not stored, or no longer: by ``load``, or by epochs."""


class OverwrittenError(MissingRowsError):
    """A row that was to come is not stored any more."""


class NoPrioritiesError(FailedPreconditionError):
    """The rows of the table have no priorities: its sampler knows none."""


class NoTrajectoriesError(FailedPreconditionError):
    """The rows of the table are no steps of episodes: it was made without trajectories."""


class EpisodeError(FailedPreconditionError):
    """Steps do not go on where their episode is: it ended, a number is left out or comes twice, or another writer writes it. Nothing was stored."""


class ClosedError(FailedPreconditionError):
    """The buffer was closed."""


class ForkedError(FailedPreconditionError):
    """The object belongs to the process of which this one is a fork. Start processes that use a remote buffer with ``spawn``."""


class SequenceError(FailedPreconditionError):
    """The insert's sequence number already stands for other rows, or is so far below the writer's highest that the server has forgotten it.

    Nothing was stored.
    """


class OtherSettingsError(FailedPreconditionError):
    """A table of a data directory has other settings than those that the server is started with. Nothing changed.

    Attributes:
        table: The name of the table.
        settings: The settings that differ.
    """

    table: str = ""
    settings: tuple[str, ...] = ()


class DirectoryInUseError(FailedPreconditionError):
    """Another process uses the data directory. The message names the process."""


class TableChangedError(ReplayError):
    """The table was reset, rewound or dropped during the read. Read again."""

    code = grpc.StatusCode.ABORTED


class ResourceExhaustedError(ReplayError):
    """A limit of the server was reached.

    Args:
        text: what was too much, and the limit.
        limit: the setting of the server that is the limit, as 'max_streams'; '': it is not a setting.
        retry_after: seconds after which the same call may pass; None: it never will, as long as the limit is what it is.
    """

    code = grpc.StatusCode.RESOURCE_EXHAUSTED

    def __init__(self, text: str = "", *, limit: str = "", retry_after: float | None = None) -> None:
        super().__init__(text)
        self.limit, self.retry_after = limit, retry_after


class MessageTooLargeError(ResourceExhaustedError):
    """A row, or a message, is larger than one message may be. It will be so next time, too."""


class OverloadedError(ResourceExhaustedError):
    """The server has as much to do as it lets itself take. The client waits as long as the server says, and tries again within its timeout."""

    def __init__(self, text: str = "", *, limit: str = "", retry_after: float | None = RETRY_SECONDS) -> None:
        super().__init__(text, limit=limit, retry_after=retry_after)


class StreamLimitError(OverloadedError):
    """The server has as many streams open as ``max_streams`` allows, in all or for this client. Close a stream, or raise the limit."""


class RateLimitedError(ResourceExhaustedError, TimeoutError):
    """The call waited for the table's rate limiter, or for rows, up to its deadline. The message says what it waited for. Nothing changed."""


class ServerUnavailableError(ReplayError, ConnectionError):
    """The server cannot be reached, or the connection to it was lost.

    Attributes:
        is_past: Whether the server has been back since: the call was older.
    """

    code = grpc.StatusCode.UNAVAILABLE
    is_past = False


class TLSError(ServerUnavailableError):
    """The two ends do not come to an encrypted connection: one of them is set up wrongly. The message says what to set.

    A connection that never worked is not tried again. Where it worked before, certificates may be being exchanged, and it is.
    """


class DeadlineError(ReplayError, TimeoutError):
    """The server did not answer in time. Whether it acted is unknown."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class CancelledError(ReplayError):
    """The call was cancelled."""

    code = grpc.StatusCode.CANCELLED


class UnauthorizedError(ReplayError, PermissionError):
    """The server does not let the caller do what it asked for. Nothing changed."""

    code = grpc.StatusCode.PERMISSION_DENIED


class UnauthenticatedError(UnauthorizedError):
    """The server does not know who calls: there is no token and no certificate, or one that is not valid any more."""

    code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDeniedError(UnauthorizedError):
    """The server knows who calls, and the caller's roles do not allow the call, or not on this table."""


class UnimplementedError(ReplayError):
    """The other side does not know the call: it speaks another version."""

    code = grpc.StatusCode.UNIMPLEMENTED


class InternalError(ReplayError):
    """A bug of the server. Its log has the details; the message does not."""

    code = grpc.StatusCode.INTERNAL


class CorruptDataError(ReplayError):
    """The content of a data directory or a checkpoint is not what was written. None of it is used, and nothing in it changes."""

    code = grpc.StatusCode.DATA_LOSS


class StorageError(ReplayError, OSError):
    """The disk failed while rows were written. They were not acknowledged. The server stops; its log has the details."""

    code = grpc.StatusCode.DATA_LOSS


def _tree(cls: type[ReplayError]) -> list[type[ReplayError]]:
    return [cls, *(found for sub in cls.__subclasses__() for found in _tree(sub))]


_BY_NAME = {cls.__name__: cls for cls in _tree(ReplayError)}

_BY_STATUS: dict[grpc.StatusCode, type[ReplayError]] = {
    grpc.StatusCode.OK: ReplayError,
    grpc.StatusCode.CANCELLED: CancelledError,
    grpc.StatusCode.UNKNOWN: ReplayError,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
    grpc.StatusCode.NOT_FOUND: TableNotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: TableExistsError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPreconditionError,
    grpc.StatusCode.ABORTED: TableChangedError,
    grpc.StatusCode.OUT_OF_RANGE: SlotIndexError,
    grpc.StatusCode.UNIMPLEMENTED: UnimplementedError,
    grpc.StatusCode.INTERNAL: InternalError,
    grpc.StatusCode.UNAVAILABLE: ServerUnavailableError,
    grpc.StatusCode.DATA_LOSS: StorageError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
}


def error_class(status: grpc.StatusCode, name: str | None = None) -> type[ReplayError]:
    """The class that `name`, from the trailing metadata, names, if that class has this status. Else the class that stands for the status."""
    named = _BY_NAME.get(name) if name else None
    return named if named is not None and named.code is status else _BY_STATUS[status]


def from_status(status: grpc.StatusCode, name: str | None, details: str) -> ReplayError:
    """The error to raise for a call that ended with `status` and `details`."""
    return error_class(status, name)(details)


def note_of_closing(error: BaseException, failure: ReplayError) -> None:
    """Adds to an error that a writer could not be closed well; before Python 3.11 only the log says so."""
    if hasattr(error, "add_note"):
        error.add_note(f"the writer could not be closed well meanwhile: {type(failure).__name__}: {failure}")
