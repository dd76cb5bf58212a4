"""A client in a process that never used OpenTelemetry, for a test that has."""

from __future__ import annotations

import sys

from tdreplay_client import RemoteReplayBuffer


def describe(address: str) -> None:
    """Makes a call, and prints which modules of OpenTelemetry are there."""
    with RemoteReplayBuffer(address) as buffer:
        buffer.describe()
    print([name for name in sys.modules if name.partition(".")[0] == "opentelemetry"], flush=True)
