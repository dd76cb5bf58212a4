"""What must be reached: ratios, because they depend least on the machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from benchmarks.plan import BARE, IN_PROCESS, RAY, RAY_DISTRIBUTED, REVERB, SERVICE, SHARED_MEMORY, TORCHRL

__all__ = ["COMPARISONS", "Comparison", "Side", "Unit"]

Unit: TypeAlias = Literal["rows", "calls", "bytes"]
"""What is compared: rows a second, calls a second, or the bytes that a row takes, of which fewer are better."""


@dataclass(frozen=True)
class Side:
    """One figure: of whom, on what, doing what."""

    participant: str
    work: str
    op: str


@dataclass(frozen=True)
class Comparison:
    """Two figures whose ratio is of interest.

    Attributes:
        what: in words.
        ours: the figure that is judged.
        theirs: the figure that it is judged by.
        least: that the ratio must be, of rows or calls a second, or of bytes the other way round; None: it is shown, and not judged.
        unit: what is compared.
    """

    what: str
    ours: Side
    theirs: Side
    least: float | None = None
    unit: Unit = "rows"


def _against(what: str, ours: Side, *targets: tuple[str, str, float | None], unit: Unit = "rows") -> tuple[Comparison, ...]:
    """One of our figures against several: (participant, op, least)."""
    return tuple(Comparison(what, ours, Side(name, ours.work, op), least, unit) for name, op, least in targets)


COMPARISONS = (
    *_against(
        "sample stream, gRPC",
        Side(SERVICE, "small", "stream"),
        (REVERB, "stream", 20),
        (RAY, "sample", 15),
        (RAY_DISTRIBUTED, "sample", None),
        (TORCHRL, "sample", 0.9),
        (BARE, "stream", None),
    ),
    *_against(
        "sample stream, gRPC",
        Side(SERVICE, "image", "stream"),
        (REVERB, "stream", 1.2),
        (RAY, "sample", 4),
        (RAY_DISTRIBUTED, "sample", None),
        (TORCHRL, "sample", 0.75),
        (BARE, "stream", 0.85),
    ),
    *_against("sample stream, shared memory", Side(SHARED_MEMORY, "image", "stream"), (REVERB, "stream", 6), (TORCHRL, "sample", 4)),
    *_against("sample_batch(256), shared memory", Side(SHARED_MEMORY, "image", "sample_batch"), (TORCHRL, "sample", None)),
    *_against("sample_batch(256), one at a time", Side(SERVICE, "small", "sample_batch"), (BARE, "round trip", 0.6), unit="calls"),
    *_against("epoch", Side(SERVICE, "image", "epoch"), (SERVICE, "stream", 0.9)),
    *_against("stream of 10^7 rows", Side(SERVICE, "small", "stream of 10^7 rows"), (SERVICE, "stream of 10^4 rows", 1 / 1.3)),
    *_against("four learners together", Side(SERVICE, "small", "four learners"), (SERVICE, "one learner", 1)),
    *_against("four learners together", Side(SERVICE, "image", "four learners"), (SERVICE, "one learner", 1)),
    *_against("add, one at a time", Side(SERVICE, "small", "add"), (BARE, "round trip", 0.6), (REVERB, "client.insert", None), unit="calls"),
    *_against("writer, single rows", Side(SERVICE, "small", "append"), (REVERB, "TrajectoryWriter", 6)),
    *_against("writer, single rows", Side(SERVICE, "image", "append"), (REVERB, "TrajectoryWriter", None)),
    *_against("add_batch(256), pipelined", Side(SERVICE, "small", "extend"), (REVERB, "TrajectoryWriter", 60)),
    *_against("add_batch(256), pipelined", Side(SERVICE, "image", "extend"), (REVERB, "TrajectoryWriter", 4)),
    *_against("add_batch(256), one at a time", Side(SERVICE, "image", "add_batch"), (BARE, "add_batch", None), (RAY, "add_batch", None)),
    *_against("add_batch(256), pipelined, shared memory", Side(SHARED_MEMORY, "image", "extend"), (REVERB, "TrajectoryWriter", None)),
    *_against("add_batch(256), shared memory", Side(SHARED_MEMORY, "image", "add_batch"), (TORCHRL, "add_batch", 1.5)),
    *_against("sample_batch(256), in process", Side(IN_PROCESS, "image", "sample_batch"), (TORCHRL, "sample", 4)),
    *_against("add_batch(256), in process", Side(IN_PROCESS, "image", "add_batch"), (TORCHRL, "add_batch", 5)),
)
