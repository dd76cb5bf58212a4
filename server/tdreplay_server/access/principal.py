"""Who calls."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from tdreplay_server.access.roles import CALLS, Role

__all__ = ["ANYBODY", "Principal"]


@dataclass(frozen=True)
class Principal:
    """A caller, and what it may do.

    Attributes:
        name: how logs and `tdreplay status` call it: the name of its token or of its certificate. '': the server asks nobody for a name.
        roles: what it may do.
        tables: on which tables: names, or patterns with ``*`` and ``?``.
    """

    name: str
    roles: frozenset[Role]
    tables: tuple[str, ...] = ("*",)

    def may_call(self, method: str) -> bool:
        """Whether one of its roles allows a call of that name."""
        return not self.roles.isdisjoint(CALLS[method])

    def may_use(self, table: str) -> bool:
        """Whether it may work on a table of that name."""
        return any(fnmatchcase(table, pattern) for pattern in self.tables)


ANYBODY = Principal("", frozenset({Role.ADMIN}))
"""The caller of a server that asks nobody for a name. It may do everything."""
