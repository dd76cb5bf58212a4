"""Windows: which steps of its episode come with each drawn step, and which steps can be drawn so."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple

from tdreplay.errors import InvalidArgumentError
from tdreplay.limits import MAX_FIELD_NAMES, check_flag, check_whole

__all__ = ["MAX_WINDOW_STEPS", "AnchorRule", "Window", "WindowQuery"]

MAX_WINDOW_STEPS = 1 << 14
"""The most steps before an anchor, and the most from it on, in one window."""


class AnchorRule(NamedTuple):
    """Which steps are *anchors*: a step is one if its whole window is there.

    The step itself is there, and is not a final observation. All steps of its episode up to `before` steps before it are there; before the first
    step of an episode nothing has to be. `steps` steps from it on are there, or as many as there are up to the end of the episode.

    An episode ended if it terminated or was truncated. One that is open, or abandoned, did not: what has not come is missing.

    Attributes:
        before: How many steps before the anchor are needed.
        steps: How many steps from the anchor on are needed, itself included.
        next_step: Whether the observation after these steps is needed, too: the next step, or the final observation where the episode ended. After a
            termination whose final observation nobody gave, it is not.
        whole: Whether all `steps` have to be there, even where the episode ended.
        stride: Steps whose number in the episode is a multiple of this are anchors.
    """

    before: int = 0
    steps: int = 1
    next_step: bool = False
    whole: bool = False
    stride: int = 1


@dataclass(frozen=True)
class Window:
    """The steps that come of a field.

    Attributes:
        field: The name of a field; that of a parent stands for all fields below it that no other window names more closely. '' stands for each field
            that no window without a prefix names.
        first: The first step, counted from the anchor: 0 is the anchor, -1 the step before it.
        last: The last one, counted in the same way. The final observation is in windows alone whose `last` is the query's `steps`, and in those at
            the horizon.
        prefix: What the names in the batch begin with, joined with '.'; '': nothing.
        at_horizon: `first` and `last` count from the step after the query's `steps` instead, or from the final observation where the episode ended
            before.
        repeat_first: Steps before the first one of the episode have its values. Else these are 0. Steps after the end are 0.
        optional: The table need not have the field.

    Raises:
        InvalidArgumentError: first is above last, or one of them is out of range.
    """

    field: str
    first: int = 0
    last: int = 0
    prefix: str = ""
    at_horizon: bool = False
    repeat_first: bool = False
    optional: bool = False

    def __post_init__(self) -> None:
        check_whole(self.first, "first of a window", -MAX_WINDOW_STEPS, MAX_WINDOW_STEPS)
        check_whole(self.last, "last of a window", self.first, MAX_WINDOW_STEPS)

    @property
    def length(self) -> int:
        """The number of steps."""
        return self.last - self.first + 1


@dataclass(frozen=True)
class WindowQuery:
    """What comes with each anchor, and what an anchor needs.

    A batch of anchors has batch size [n]. A field of a window has shape [n, window.length, *field shape]. Beside the fields it has `window_before`
    and `window_after`, which say how much of the window is there.

    Attributes:
        windows: One for each field or group of fields.
        steps, next_step, whole, stride: As in `AnchorRule`.

    Raises:
        InvalidArgumentError: a window needs more steps than the anchors have, or a number is out of range.
    """

    windows: tuple[Window, ...]
    steps: int = 1
    next_step: bool = False
    whole: bool = False
    stride: int = 1

    def __post_init__(self) -> None:
        check_whole(len(self.windows), "the number of windows", 1, MAX_FIELD_NAMES)
        check_whole(self.steps, "steps", 1, MAX_WINDOW_STEPS)
        check_whole(self.stride, "stride", 1, MAX_WINDOW_STEPS)
        check_flag(self.next_step, "next_step")
        check_flag(self.whole, "whole")
        most = self.steps if self.next_step else self.steps - 1
        for window in self.windows:
            if window.at_horizon and not self.next_step:
                raise InvalidArgumentError("a window at the horizon needs next_step")
            check_whole(window.last, "last of a window", window.first, 0 if window.at_horizon else most)

    @cached_property
    def rule(self) -> AnchorRule:
        """Which steps are anchors."""
        before = max(-window.first - (1 if window.at_horizon else 0) for window in self.windows)
        return AnchorRule(max(0, before), self.steps, self.next_step, self.whole, self.stride)

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {field.name: getattr(self, field.name) for field in fields(self)} | {"windows": [vars(window) for window in self.windows]}
