"""Windows, to protobuf messages and back."""

from __future__ import annotations

from tdreplay.errors import InvalidArgumentError
from tdreplay.limits import MAX_FIELD_NAMES, check_whole
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay.windows import Window, WindowQuery

__all__ = ["window_query_from_message", "window_query_to_message"]


def window_query_to_message(query: WindowQuery) -> pb.WindowQuery:
    """The message that asks for windows."""
    windows = [pb.Window(**vars(window)) for window in query.windows]
    return pb.WindowQuery(windows=windows, steps=query.steps, next_step=query.next_step, whole=query.whole, stride=query.stride)


def window_query_from_message(message: pb.WindowQuery) -> WindowQuery:
    """The windows that a message asks for.

    Raises:
        InvalidArgumentError: there are none, or a number is out of its range.
    """
    check_whole(len(message.windows), "the number of windows", 1, MAX_FIELD_NAMES)
    windows = tuple(Window(**{field.name: getattr(window, field.name) for field in pb.Window.DESCRIPTOR.fields}) for window in message.windows)
    if not message.steps:
        raise InvalidArgumentError("steps (0) of a query of windows must be at least 1")
    return WindowQuery(windows, message.steps, message.next_step, message.whole, message.stride or 1)
