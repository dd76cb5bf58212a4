"""Roles from the common name of a client's certificate: ``learner``, ``actor+reader``, ``learner:atari-*,cartpole``."""

from __future__ import annotations

from functools import lru_cache

from tdreplay_server.access.principal import EVERY_TABLE, Principal
from tdreplay_server.access.roles import Role

__all__ = ["unlimited", "with_roles_of"]

UNNAMED = "a certificate without a name"
ROLES = {role.value: role for role in Role}


@lru_cache(maxsize=4096)
def with_roles_of(name: str) -> Principal | None:
    """The caller whose certificate has this common name; None where the name says nothing of roles.

    It does where it has the form ROLE or ROLE:TABLES, several roles joined by ``+`` and several names of tables, or patterns, by ``,``. If one of
    several roles is misspelt, the caller has none.
    """
    roles, colon, tables = name.partition(":")
    found = [ROLES.get(role) for role in roles.split("+")]
    known = frozenset(role for role in found if role is not None)
    if not known:
        return None
    return Principal(name, frozenset() if None in found else known, tuple(tables.split(",")) if colon else (EVERY_TABLE,))


@lru_cache(maxsize=4096)
def unlimited(name: str) -> Principal:
    """The caller whose certificate has this common name, on a server where a certificate is all that is asked for."""
    return Principal(name or UNNAMED, frozenset({Role.ADMIN}))
