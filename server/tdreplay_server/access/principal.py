"""Who calls."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import translate
from functools import lru_cache

from tdreplay.errors import InvalidArgumentError
from tdreplay.limits import shown
from tdreplay_server.access.roles import CALLS, Role

__all__ = ["ANYBODY", "EVERY_TABLE", "Principal", "check_pattern"]

EVERY_TABLE = "*"
"""The pattern that every name matches."""


def check_pattern(pattern: str) -> str:
    """`pattern`, where it is the name of a table, or one with ``*`` and ``?`` in it.

    Raises:
        InvalidArgumentError: it can be the name of no table.
    """
    if not re.fullmatch(r"[A-Za-z0-9_*?-]{1,64}", pattern):
        raise InvalidArgumentError(f"table ({shown(pattern)}) must be 1 to 64 letters, digits, '_' or '-', with * and ? for any of them")
    return pattern


@lru_cache(maxsize=4096)
def _any_of(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(translate, patterns)))


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
    tables: tuple[str, ...] = (EVERY_TABLE,)

    def may_call(self, method: str) -> bool:
        """Whether one of its roles allows a call of that name."""
        return not self.roles.isdisjoint(CALLS[method])

    def may_use(self, table: str) -> bool:
        """Whether it may work on a table of that name."""
        return _any_of(self.tables).match(table) is not None

    @property
    def may_use_all(self) -> bool:
        """Whether it may work on every table."""
        return EVERY_TABLE in self.tables

    @property
    def may_create(self) -> bool:
        """Whether it may make tables. Others only make sure that one is there."""
        return Role.ADMIN in self.roles


ANYBODY = Principal("", frozenset({Role.ADMIN}))
"""The caller of a server that asks nobody for a name. It may do everything."""
