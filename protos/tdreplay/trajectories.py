"""Tables of steps: what a table has to know of the episodes that its rows belong to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tdreplay.errors import InvalidArgumentError
from tdreplay.field_names import field_name
from tdreplay.limits import MAX_FIELD_NAMES, MAX_NAME_LENGTH, check_whole, shown

__all__ = ["Trajectories", "trajectories_of", "trajectories_to_json"]

NAMES = ("ends", "final_fields", "reward")
"""What `Trajectories` has."""


@dataclass(frozen=True)
class Trajectories:
    """The rows of a table are steps of episodes, each of which is stored once.

    A step is what an environment and an agent did at one time: the observation before the action, the action, the reward after it, and whether the
    episode ended with it. The observation after the last step is stored with the episode's end, as a row of its own.

    Attributes:
        ends: The names of one or two fields that say whether an episode ended with a step: first that it terminated, then that it was truncated.
        final_fields: The names of the fields that an observation has, which are stored once more at the end of an episode. The name of a parent
            stands for all fields below it.
        reward: The name of the field with the reward; None: there is none. A table without this field has no returns.

    Names are as in `fields`: nested keys are joined with '.', or are tuples.

    Raises:
        InvalidArgumentError: a name is none, comes twice, is that of a parent of another one, or there are too few or too many.
    """

    ends: tuple[str, ...] = ("terminated", "truncated")
    final_fields: tuple[str, ...] = ("obs",)
    reward: str | None = "reward"

    def __post_init__(self) -> None:
        object.__setattr__(self, "ends", _names(self.ends, "ends", 2))
        object.__setattr__(self, "final_fields", _names(self.final_fields, "final_fields", MAX_FIELD_NAMES))
        reward = None if self.reward in (None, "") else _names((self.reward,), "reward", 1)[0]
        object.__setattr__(self, "reward", reward)
        named = [*self.ends, *self.final_fields, *([self.reward] if self.reward else [])]
        if len(set(named)) < len(named) or not {parent for name in named for parent in _parents(name)}.isdisjoint(named):
            raise InvalidArgumentError(f"trajectories: of the ends, the final_fields and the reward ({shown(named)}) each must be another field")

    @property
    def terminated(self) -> str:
        """The name of the field that says that an episode terminated."""
        return self.ends[0]

    @property
    def truncated(self) -> str | None:
        """The name of the field that says that an episode was truncated; None: there is none."""
        return self.ends[1] if len(self.ends) > 1 else None

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {"ends": list(self.ends), "final_fields": list(self.final_fields), "reward": self.reward}

    def __str__(self) -> str:
        return f"Trajectories(ends={self.ends}, final_fields={self.final_fields}, reward={self.reward!r})"


def trajectories_of(entries: object) -> Trajectories | Literal[False]:
    """What `entries` says of a table: `Trajectories`, a mapping of its attributes, True for the usual ones, or False: its rows are no steps.

    Raises:
        InvalidArgumentError: it is none of these.
    """
    if entries is False or isinstance(entries, Trajectories):
        return entries
    if entries is True:
        return Trajectories()
    if not isinstance(entries, Mapping):
        raise InvalidArgumentError(f"trajectories ({shown(entries)}) must be True, False, or have {', '.join(NAMES)}")
    for key in entries:
        if key not in NAMES:
            raise InvalidArgumentError(f"trajectories has no {str(key)[:80]}: it may have {', '.join(NAMES)}")
    return Trajectories(**entries)


def trajectories_to_json(trajectories: Trajectories | Literal[False]) -> Any:
    """What `trajectories_of` takes, as a JSON value."""
    return trajectories.to_json() if trajectories else False


def _parents(name: str) -> list[str]:
    """The names of the fields above a field."""
    return [name[:at] for at, letter in enumerate(name) if letter == "."]


def _names(names: Any, what: str, most: int) -> tuple[str, ...]:
    try:
        found = (names,) if isinstance(names, str) else tuple(field_name(name) for name in names)
    except TypeError:
        raise InvalidArgumentError(f"{what} ({shown(names)}) must be names of fields") from None
    check_whole(len(found), f"the number of names in {what}", 1, most)
    if not all(0 < len(name) <= MAX_NAME_LENGTH and name.isprintable() for name in found):
        raise InvalidArgumentError(f"{what} ({shown(names)}) must be names of fields: printable, and 1 to {MAX_NAME_LENGTH} characters long")
    return found
