"""The views that the tests of trajectories look through."""

from __future__ import annotations

from tdreplay.sequences import Sequences
from tdreplay.transitions import Transitions
from tdreplay.views import View

__all__ = ["SEQUENCES", "TRANSITIONS", "VIEWS"]

TRANSITIONS: tuple[View, ...] = (
    *(Transitions(n_step, 0.5, {"obs": 4, ("camera", "left"): 4} if stack > 1 else {}) for n_step in (1, 3, 10) for stack in (1, 4)),
    Transitions(3, 0.9, {"camera": 2, "hidden": 6}, padding="zeros", names="plain"),
    Transitions(1, 0.99, {"obs": 1, "hidden": 3}, padding="zeros"),
    Transitions(2, 0, names="plain"),
    Transitions(1, 1, {"camera": 3}),
)
SEQUENCES: tuple[View, ...] = (
    Sequences(8),
    Sequences(8, padding="drop"),
    Sequences(8, burn_in=4),
    Sequences(6, burn_in=3, stride=5, padding="drop"),
    Sequences(40),  # Longer than any episode.
    Sequences(40, burn_in=40, stride=7),
    Sequences(1),
    Sequences(5, burn_in=2, next_obs=True, step_ids=True),
    Sequences(12, next_obs=True, padding="drop", stride=3),
    Sequences(40, step_ids=True),
)
VIEWS = TRANSITIONS + SEQUENCES
