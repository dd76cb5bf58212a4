"""The guard that makes the status of a call out of an error. What the guards behind it raise becomes a status too: those before it raise nothing."""

from __future__ import annotations

from collections.abc import Iterator

from tdreplay.errors import InternalError, ReplayError
from tdreplay_server.system.logs import log
from tdreplay_server.transport.call import Call, ClientGoneError, Request
from tdreplay_server.transport.guards.details import details_of
from tdreplay_server.transport.guards.guard import Answer, Proceed

__all__ = ["statuses"]


def statuses(requests: Iterator[Request], call: Call, proceed: Proceed) -> Iterator[Answer]:
    """Ends the call with the status of the error that is raised in it, and the name of the error's class beside it."""
    try:
        yield from proceed(requests, call)
    except ReplayError as error:
        details = details_of(error)
        log.info(
            "call refused",
            call=call.method,
            request_id=call.request_id,
            peer=call.peer,
            caller=call.principal.name,
            error=type(error).__name__,
            details=details,
        )
        call.fail(error, details)
    except ClientGoneError as error:
        log.debug("the client is gone: there is nobody to tell", call=call.method, error=repr(error))
    except Exception:  # noqa: BLE001 - a bug: the log gets all of it, the client none.
        log.error("call failed", call=call.method, request_id=call.request_id, exc_info=True)  # `exception` would write it twice.
        call.fail(InternalError(), f"internal error; the server's log has the details, under request {call.request_id}")
