"""What a guard is, and how a chain is made of guards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TypeAlias

from google.protobuf.message import Message

from tdreplay_server.transport.call import Call, Request

__all__ = ["Answer", "Answers", "Guard", "Proceed", "guarded"]

Answer: TypeAlias = "Message | bytes"
"""A message to a client; bytes are a message that is encoded already."""
Answers: TypeAlias = Iterable[Answer]
"""What a call answers: one message, or as many as it likes where the server streams."""
Proceed: TypeAlias = Callable[[Iterator[Request], Call], Answers]
"""What stands behind a guard: the next guard, or the handler."""
Guard: TypeAlias = Callable[[Iterator[Request], Call, Proceed], Answers]
"""Does its part before, between and after the answers that `proceed` gives. To refuse the call it raises an error, and does not proceed.

The requests are read from the client when they are asked for, so a guard that asks for one waits for the client.
"""


def guarded(handle: Proceed, guards: Sequence[Guard]) -> Proceed:
    """`handle` behind `guards`, of which the first is the outermost."""
    for guard in reversed(guards):
        handle = partial(guard, proceed=handle)
    return handle
