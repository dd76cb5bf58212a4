"""The guard that makes the status of a call out of an error. What the guards behind it raise becomes a status too: those before it raise nothing."""

from __future__ import annotations

from collections.abc import Iterator

from tdreplay.errors import InternalError, InvalidArgumentError, ReplayError
from tdreplay_server.system.logs import log
from tdreplay_server.transport.call import Call, ClientGoneError, Request
from tdreplay_server.transport.guards.details import details_of
from tdreplay_server.transport.guards.guard import Answer, Proceed
from tdreplay_server.transport.guards.private_paths import PrivatePaths
from tdreplay_server.transport.guards.refusal_log import RefusalLog

__all__ = ["Statuses", "statuses"]

OF_THE_CLIENT = InvalidArgumentError
"""Errors that show a value of the client's."""


class Statuses:
    """Ends a call with the status of the error that is raised in it, and the name of the error's class beside it.

    Args:
        paths: what clients do not read in the text of an error.
    """

    def __init__(self, paths: PrivatePaths | None = None) -> None:
        self._paths, self._log = paths or PrivatePaths(), RefusalLog()

    def __call__(self, requests: Iterator[Request], call: Call, proceed: Proceed) -> Iterator[Answer]:
        """Raises what gRPC takes for the end of a call."""
        try:
            yield from proceed(requests, call)
        except ReplayError as error:
            self._log.refused(call, error)
            call.fail(error, details_of(self._paths.hidden(str(error), own=isinstance(error, OF_THE_CLIENT))))
        except ClientGoneError as error:
            log.debug("the client is gone: there is nobody to tell", call=call.method, error=repr(error))
        except Exception:  # noqa: BLE001 - a bug: the log gets all of it, the client none.
            log.error("call failed", call=call.method, request_id=call.request_id, exc_info=True)  # `exception` would write it twice.
            call.fail(InternalError(), f"internal error; the server's log has the details, under request {call.request_id}")


statuses = Statuses()
"""For calls that touch no file."""
