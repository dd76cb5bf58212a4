"""Who is measured, on what, in which order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

__all__ = [
    "BARE",
    "CLUSTER",
    "CLUSTER_SHARED_MEMORY",
    "ENTRIES",
    "IN_PROCESS",
    "RAY",
    "RAY_DISTRIBUTED",
    "REVERB",
    "RLLIB",
    "SERVICE",
    "SHARED_MEMORY",
    "TORCHRL",
    "Entry",
    "Plan",
]

BARE = "bare gRPC"
TORCHRL = "TorchRL in process"
REVERB = "Reverb"
RAY = "TorchRL Ray"
RAY_DISTRIBUTED = "TorchRL Ray, distributed"
IN_PROCESS = "tdreplay in process"
SERVICE = "tdreplay gRPC"
SHARED_MEMORY = "tdreplay shared memory"
RLLIB = "RLlib Ray"
CLUSTER = "tdreplay on Ray, gRPC"
CLUSTER_SHARED_MEMORY = "tdreplay on Ray, shared memory"

WORKS = ("small", "image", "frames", "steps")
"""Rows of transitions (`benchmarks.work`), and steps of episodes (`benchmarks.play`)."""
ROWS = WORKS[:2]


@dataclass(frozen=True)
class Entry:
    """A participant's program.

    Attributes:
        participant: what it is called in the results.
        module: of `benchmarks.participants`.
        environment: that it runs in; empty: the project's own.
        variant: of the module.
        also: the other name that some of its results have.
        works: that it does.
        quick: whether the quick form has it.
        optional: whether it is left out unless all are asked for.
        deadline: seconds until it must have ended.
        capacities: work -> rows of its buffer, where these are not as many as usual.
    """

    participant: str
    module: str
    environment: str = ""
    variant: str = ""
    also: str = ""
    works: tuple[str, ...] = ROWS
    quick: bool = True
    optional: bool = False
    deadline: float = 120.0
    capacities: Mapping[str, int] = field(default_factory=dict)


ENTRIES = (
    Entry(BARE, "bare_grpc"),
    Entry(TORCHRL, "torchrl_in_process"),
    Entry(REVERB, "reverb_service", environment="reverb", quick=False),
    Entry(RAY, "torchrl_ray", environment="ray", variant="ray", quick=False),
    Entry(RAY_DISTRIBUTED, "torchrl_ray", environment="ray", variant="distributed", quick=False, optional=True),
    Entry(SERVICE, "tdreplay_service", also=SHARED_MEMORY),
    Entry(IN_PROCESS, "tdreplay_in_process", works=("image",)),
    Entry(SERVICE, "tdreplay_learners", quick=False),
    Entry(SERVICE, "tdreplay_table_sizes", works=("small",), quick=False),
)


@dataclass(frozen=True)
class Plan:
    """A run of the benchmark.

    Attributes:
        quick: only what the project's own environment can run, and what is short.
        everything: the optional participants too.
        rounds: how often each is measured; they take turns.
        seconds: that each figure may take.
        programs: of which those take part that `quick` and `everything` leave.
    """

    quick: bool
    everything: bool
    rounds: int
    seconds: float
    programs: tuple[Entry, ...]

    @property
    def entries(self) -> list[Entry]:
        """Those that take part."""
        return [entry for entry in self.programs if (entry.quick or not self.quick) and (self.everything or not entry.optional)]

    @property
    def participants(self) -> set[str]:
        """The names in the results."""
        return {name for entry in self.entries for name in (entry.participant, entry.also)}

    def turns(self) -> Iterator[tuple[Entry, str]]:
        """One round: what is compared comes close together in time."""
        return ((entry, work) for work in WORKS for entry in self.entries if work in entry.works)
