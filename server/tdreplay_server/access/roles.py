"""The roles, and which calls of the service each of them may make. docs/security.md has the same table."""

from __future__ import annotations

from enum import Enum

__all__ = ["CALLS", "Role"]


class Role(str, Enum):
    """What a caller is allowed to do."""

    ACTOR = "actor"
    """Inserts rows."""
    LEARNER = "learner"
    """Reads rows in every way, takes those of consuming tables, and updates priorities."""
    READER = "reader"
    """Looks: descriptions, episodes, rows by slot. It changes nothing, and takes nothing from learners."""
    ADMIN = "admin"
    """Everything."""


_EVERY = frozenset(Role)
_ADMIN = frozenset({Role.ADMIN})
_WRITES = _ADMIN | {Role.ACTOR}
_LEARNS = _ADMIN | {Role.LEARNER}
_LOOKS = _LEARNS | {Role.READER}

CALLS: dict[str, frozenset[Role]] = {
    "Add": _WRITES,
    "AddBatch": _WRITES,
    "Sample": _LEARNS,
    "SampleBatch": _LEARNS,
    "SampleAll": _LEARNS,
    "Epoch": _LEARNS,
    "UpdatePriorities": _LEARNS,
    "SampleByIndex": _LOOKS,
    "SampleEpisode": _LOOKS,
    "ListEpisodes": _LOOKS,
    "Describe": _EVERY,
    "ListTables": _EVERY,
    "ServerStatus": frozenset({Role.READER, Role.ADMIN}),
    "CreateTable": _EVERY,  # All but an admin only check that a table is there with the settings that they expect.
    "DropTable": _ADMIN,
    "Reset": _ADMIN,
    "Rewind": _ADMIN,
    "Checkpoint": _ADMIN,
}
"""Which roles may make a call."""
