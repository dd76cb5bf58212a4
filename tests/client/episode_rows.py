"""Steps whose observation says which they are, and what a table made of them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from tdreplay.api import BaseReplayBuffer

__all__ = ["check_numbers", "stored", "taken_step"]

LENGTH = 7
"""Every so many steps an episode terminates."""


def taken_step(number: int, width: int = 1) -> tuple[dict[str, Any], np.ndarray]:
    """Step `number` of an environment whose episodes have `LENGTH` steps, and the observation after it."""
    seen = np.full(width, number, np.int32)
    return {"obs": seen, "terminated": number % LENGTH == LENGTH - 1, "truncated": False}, seen + 1


def taken_steps(number: int, n_envs: int, width: int = 1) -> tuple[dict[str, Any], np.ndarray]:
    """The same of `n_envs` environments. Environment e is e steps behind, and its observations begin at 100,000 e."""
    numbers = np.arange(n_envs) * 100_000 + number
    seen = np.repeat(numbers[:, None], width, axis=1).astype(np.int32)
    return {"obs": seen, "terminated": (number + np.arange(n_envs)) % LENGTH == LENGTH - 1, "truncated": np.zeros(n_envs, bool)}, seen + 1


def stored(buffer: BaseReplayBuffer) -> list[tuple[int, int, int, int]]:
    """Episode id, step, kind and observation of all rows, in the order in which they were stored."""
    rows = buffer.sample_by_index_fields(range(buffer.state().size), ["episode_id", "step", "step_kind", "obs", "row_id"])
    rows = rows[rows["row_id"].argsort()]
    columns = (rows["episode_id"], rows["step"], rows["step_kind"], rows["obs"][:, 0])
    return list(zip(*(column.tolist() for column in columns), strict=True))


def check_numbers(rows: list[tuple[int, int, int, int]]) -> dict[int, list[int]]:
    """The observations of the steps of each episode, once it is sure that they have no gap, and that an end is followed by the final observation."""
    episodes: dict[int, list[tuple[int, int, int]]] = {}
    for episode_id, step, kind, seen in rows:
        episodes.setdefault(episode_id, []).append((step, kind, seen))
    for found in episodes.values():
        assert [step for step, _, _ in found] == list(range(len(found)))
        for (_, kind, seen), (_, following, after) in pairwise(found):
            assert kind in (0, 5), found
            assert (following == 8) == (kind == 5), found
            if following == 8:
                assert after == seen + 1
        assert found[-1][1] in (0, 8)
    return {episode_id: [seen for _, kind, seen in found if kind != 8] for episode_id, found in episodes.items()}
