"""Calls to actors: answers within a deadline, and Ray's errors as ours."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from tdreplay.errors import DeadlineError, FailedPreconditionError, InternalError, ReplayError, ServerUnavailableError, TableNotFoundError
from tdreplay_client.ray.settings import NAMESPACE, directory_name, shard_name

__all__ = ["answer_of", "answers_of", "check_connected", "found_directory", "found_shards", "is_restarted"]


def check_connected() -> None:
    """Passes where this process is connected to Ray.

    Raises:
        FailedPreconditionError: it is not.
    """
    if not ray.is_initialized():
        raise FailedPreconditionError("this process is not connected to Ray: call ray.init(), or ray.init(address='auto') on a node of a Ray cluster")


def answer_of(reference: Any, seconds: float, what: str) -> Any:
    """What a call of an actor gives.

    Args:
        reference: The call.
        seconds: How long it may take.
        what: Who answers, for the message.

    Raises:
        ReplayError: what it raised.
        ServerUnavailableError: the actor is gone, or being restarted.
        DeadlineError: it does not answer in time.
    """
    try:
        return ray.get(reference, timeout=seconds)
    except GetTimeoutError:
        raise DeadlineError(f"{what} did not answer within {seconds:.1f} s") from None
    except RayTaskError as error:
        raise _cause(error, what) from None
    except RayActorError as error:
        raise ServerUnavailableError(f"{what} is gone, or being restarted: {_brief(error)}") from None
    except RayError as error:
        raise ServerUnavailableError(f"{what} cannot be asked: {_brief(error)}") from None


def answers_of(references: Iterable[Any], seconds: float, what: str) -> list[Any]:
    """What several calls give, in order. Errors are as in `answer_of`, the first one's."""
    return [answer_of(reference, seconds, what) for reference in references]


def _cause(error: RayTaskError, what: str) -> Exception:
    cause = error.cause
    return cause if isinstance(cause, ReplayError) else InternalError(f"{what} failed: {_brief(error)}")


def _brief(error: Exception) -> str:
    """The end of Ray's text, which is what happened: a traceback stands before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[-500:]


def found_directory(name: str) -> Any:
    """The actor that knows the shards of a cluster.

    Raises:
        TableNotFoundError: there is no such cluster.
        FailedPreconditionError: this process is not connected to Ray.
    """
    check_connected()
    try:
        return ray.get_actor(directory_name(name), namespace=NAMESPACE)
    except ValueError:
        raise TableNotFoundError(f"there is no cluster {name!r} on this Ray: it was not started, or was stopped") from None


def found_shards(name: str) -> list[int]:
    """The numbers of the shards of a cluster whose actors have their names: those that run, or are being restarted."""
    beginning = shard_name(name, "")
    names = [entry["name"] for entry in ray.util.list_named_actors(all_namespaces=True) if entry["namespace"] == NAMESPACE]
    return sorted(int(one.removeprefix(beginning)) for one in names if one.startswith(beginning))


def is_restarted() -> bool:
    """Whether Ray started this actor again."""
    with warnings.catch_warnings():  # Ray calls what it calls deprecated.
        warnings.simplefilter("ignore")
        return bool(ray.get_runtime_context().was_current_actor_reconstructed)
