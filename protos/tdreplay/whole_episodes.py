"""A whole episode, made of its rows."""

from __future__ import annotations

from tensordict import TensorDict

from tdreplay.trajectories import Trajectories

__all__ = ["whole_episode"]


def whole_episode(rows: TensorDict, trajectories: Trajectories, *, has_final: bool) -> TensorDict:
    """The steps of an episode, with the observation after each where the final one is there.

    Args:
        rows: The steps in order, and behind them the final observation, if it is there: batch size [T] or [T + 1].
        trajectories: Which fields an observation has.
        has_final: Whether it is there.

    Returns:
        Batch size [T]. What ``("next", ...)`` has is a view of the same memory, one step later.
    """
    if not has_final:
        return rows
    steps = rows[:-1]
    for key, values in rows[1:].items(include_nested=True, leaves_only=True):
        path = (key,) if isinstance(key, str) else key
        if _is_observed(".".join(path), trajectories):
            steps.set(("next", *path), values)
    return steps


def _is_observed(name: str, trajectories: Trajectories) -> bool:
    return any(name == final or name.startswith(f"{final}.") for final in trajectories.final_fields)
