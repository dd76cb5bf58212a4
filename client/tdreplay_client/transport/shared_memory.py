"""The client's side of shared memory: a server's file, mapped."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from tdreplay.errors import ReplayError
from tdreplay.mapped_segments import MappedSegments
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay_client.transport.answers import Answers

__all__ = ["Sharing", "mapped"]

log = logging.getLogger("tdreplay")
T = TypeVar("T")


class Sharing:
    """Whether the calls of one buffer use shared memory: as long as it is wanted, and was not found to be out of reach.

    Args:
        address: The address of the server.
        wanted: by the user.
    """

    def __init__(self, address: str, wanted: bool) -> None:
        self._address, self.wanted = address, wanted

    def tried(self, opened: Callable[[bool], T]) -> T:
        """``opened(True)``; where the memory that the server offers cannot be had, ``opened(False)`` from then on, and one line in the log."""
        if self.wanted:
            try:
                return opened(True)
            except OSError as error:
                if isinstance(error, ReplayError):  # A lost connection is an OSError too.
                    raise
                self.wanted = False
                log.warning("%s offers shared memory that cannot be had from here (%s): batches travel over gRPC", self._address, error)
        return opened(False)


def mapped(offer: pb.SharedMemory, answers: Answers) -> MappedSegments | None:
    """The segments that a server offers on a call; None where it offers none.

    Raises:
        OSError: they cannot be had from here.
        ServerUnavailableError: the server died since it offered them, and its memory with it: that says nothing of the next one's.
    """
    try:
        return MappedSegments(offer) if offer.path else None
    except OSError:
        answers.check_alive()
        raise
