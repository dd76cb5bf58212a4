"""Learners that share epochs over shards, and note each batch with the token that stands after it: whoever kills one finds out what it has taken."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tdreplay_client import ShardedReplayBuffer

__all__ = ["TIMEOUT", "ShardLearner", "learn"]

TIMEOUT = 60.0


@dataclass(frozen=True)
class ShardLearner:
    """One of some learners.

    Attributes:
        addresses: of the shards.
        table: the name of the table.
        notes: where it notes what it has taken.
        rank: which one it is.
        world_size: how many there are.
        epochs: how often each row is to come.
        pause: seconds that it takes for a batch.
    """

    addresses: tuple[str, ...]
    table: str
    notes: str
    rank: int
    world_size: int
    epochs: int = 1
    pause: float = 0.01

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The batches that were noted, each with its token. A line that was cut off is none."""
        path = Path(self.notes)
        return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")] if path.exists() else []

    @property
    def taken(self) -> list[int]:
        """The rows that were taken, as often as they were."""
        return [number for line in self.lines for number in line["rows"]]


def learn(learner: ShardLearner) -> None:
    """In the child: takes the batches that are left, and notes each in one write."""
    torch.set_num_threads(1)
    before = learner.lines
    Path(learner.notes).write_text("".join(json.dumps(line) + "\n" for line in before))
    print("learns", flush=True)
    with ShardedReplayBuffer(learner.addresses, table=learner.table, timeout=TIMEOUT) as buffer, open(learner.notes, "ab", buffering=0) as notes:
        share = {"rank": learner.rank, "world_size": learner.world_size}
        batches = buffer.epochs(16, learner.epochs, shuffle=True, seed=7, fields=["number"], **share)
        if before:
            batches.load_state_dict(before[-1]["token"])
        for batch in batches:
            notes.write((json.dumps({"rows": batch["number"].tolist(), "token": batches.state_dict()}) + "\n").encode())
            time.sleep(learner.pause)
