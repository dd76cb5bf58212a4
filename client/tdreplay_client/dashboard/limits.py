"""How much the dashboard reads at most: a table of large rows, or of many, costs the server no more than these."""

from __future__ import annotations

__all__ = [
    "HISTOGRAMS",
    "HISTORY_SECONDS",
    "INLINE_BYTES",
    "MAX_CLIENTS",
    "MAX_EPISODES",
    "MAX_STEPS",
    "PAGE_BYTES",
    "PAGE_ROWS",
    "PAGE_VALUES",
    "POLL_SECONDS",
    "SAMPLE_ROWS",
    "SHOWN_ELEMENTS",
    "STEP_BYTES",
    "TABLES",
    "VALUE_BYTES",
]

POLL_SECONDS = 1.0
"""The time between two looks at all tables."""

HISTORY_SECONDS = 600
"""How far back the curves go."""

TABLES = 64
"""Tables that are looked at, by name."""

MAX_CLIENTS = 200
"""Clients of the server that are listed."""

SAMPLE_ROWS = 2000
"""Rows of which histograms are made."""

HISTOGRAMS = 24
"""Fields of which histograms are made."""

PAGE_ROWS = 50
"""Rows of a page."""

PAGE_BYTES = 2 << 20
"""Bytes of the rows of a page. Images and larger values are read one by one, when they come into sight."""

INLINE_BYTES = 4096
"""Bytes of a value that comes with its row."""

SHOWN_ELEMENTS = 8
"""Numbers of a value that a row shows before it is unfolded."""

VALUE_BYTES = 4 << 20
"""Bytes of one value that is shown at all."""

PAGE_VALUES = 1000
"""Numbers of an unfolded value that come at once."""

MAX_EPISODES = 4096
"""Episodes that are listed: the newest."""

MAX_STEPS = 20_000
"""Steps of an episode that is shown."""

STEP_BYTES = 256
"""Bytes of each step of an episode that come at once; images and larger values are read step by step."""
