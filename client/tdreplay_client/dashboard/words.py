"""What went wrong, in the words of somebody who looks at a page."""

from __future__ import annotations

from tdreplay.errors import (
    ClosedError,
    DeadlineError,
    EmptyTableError,
    EpisodeNotFoundError,
    InvalidArgumentError,
    NoTrajectoriesError,
    OverloadedError,
    OverwrittenError,
    PermissionDeniedError,
    ReplayError,
    ServerUnavailableError,
    SlotIndexError,
    TableChangedError,
    TableNotFoundError,
    UnauthenticatedError,
    UnimplementedError,
)

__all__ = ["in_words", "status_of"]

WORDS: tuple[tuple[type[ReplayError], int, str], ...] = (
    (UnauthenticatedError, 403, "The server does not know this dashboard. Start it with a valid token of the role reader."),
    (PermissionDeniedError, 403, "The server does not let this dashboard do that. It needs the role reader, for this table."),
    (TableNotFoundError, 404, "There is no such table. It may have been dropped."),
    (EpisodeNotFoundError, 404, "No step of this episode is stored, or none any more."),
    (OverwrittenError, 404, "These rows were overwritten."),
    (SlotIndexError, 404, "This row is not stored any more."),
    (NoTrajectoriesError, 404, "The rows of this table are no steps of episodes."),
    (EmptyTableError, 404, "The table is empty."),
    (TableChangedError, 409, "The table was reset or dropped while it was read."),
    (InvalidArgumentError, 400, ""),
    (UnimplementedError, 501, "The server is of an older version, which cannot say that."),
    (OverloadedError, 503, "The server is too busy to answer. The page asks again."),
    (ServerUnavailableError, 503, "The server is away: it cannot be reached. The page goes on by itself when it is back."),
    (DeadlineError, 504, "The server did not answer in time. The page asks again."),
    (ClosedError, 503, "The dashboard is about to end."),
    (ReplayError, 502, "The server could not answer."),
)
"""A kind of error, the HTTP status that stands for it, and words; '': those of the error itself. The first one that fits counts."""


def in_words(error: ReplayError) -> str:
    """The error as a sentence or two."""
    return next(words for kind, _, words in WORDS if isinstance(error, kind)) or str(error)


def status_of(error: ReplayError) -> int:
    """The HTTP status of the error."""
    return next(status for kind, status, _ in WORDS if isinstance(error, kind))
