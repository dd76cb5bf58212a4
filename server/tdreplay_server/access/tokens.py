"""Tokens: secrets that callers show. What is kept of them says what each is good for, and has their hashes, never the tokens."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections import Counter
from datetime import datetime, timezone
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, PlainSerializer
from typing_extensions import Self

from tdreplay.errors import InvalidArgumentError
from tdreplay.limits import shown
from tdreplay_server.access.principal import Principal, check_pattern
from tdreplay_server.access.roles import Role

__all__ = ["PREFIX", "Token", "Tokens", "check_token_name", "digest_of", "new_secret"]

PREFIX = "tdr_"
"""How each token begins: who finds one in a log or a repository knows what it is."""
SECRET_BYTES = 32
FORMAT = 1
STRICT = ConfigDict(strict=True, frozen=True, extra="forbid")


def new_secret() -> str:
    """A new token, which nobody can guess: it has 32 random bytes."""
    return PREFIX + secrets.token_urlsafe(SECRET_BYTES)


def digest_of(token: str) -> bytes:
    """What is kept of a token. SHA-256 without salt or rounds is enough: a token is as hard to guess as its hash."""
    return hashlib.sha256(token.encode(errors="surrogateescape")).digest()


def check_token_name(name: str) -> str:
    """`name`, where a token may have it.

    Raises:
        InvalidArgumentError: it may not.
    """
    if not re.fullmatch(r"[A-Za-z0-9_.@-]{1,64}", name):
        raise InvalidArgumentError(f"name ({shown(name)}) must be 1 to 64 letters, digits, '_', '-', '.' or '@'")
    return name


def _format(version: int) -> int:
    if version != FORMAT:
        raise ValueError(f"is {version}, and this version of tdreplay knows {FORMAT}")
    return version


class Token(BaseModel):
    """What a file says of a token.

    Attributes:
        name: what logs and commands call it.
        sha256: the hash of the token, in hexadecimal digits.
        roles: what its callers may do.
        tables: on which tables: names, or patterns with ``*`` and ``?``.
        created: when it was made.
        expires: when it stops being valid; None: never.
    """

    model_config = STRICT

    name: Annotated[str, AfterValidator(check_token_name)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    roles: Annotated[tuple[Annotated[Role, PlainSerializer(lambda role: role.value)], ...], Field(min_length=1)]
    tables: Annotated[tuple[Annotated[str, AfterValidator(check_pattern)], ...], Field(min_length=1)] = ("*",)
    created: AwareDatetime
    expires: AwareDatetime | None = None

    @property
    def principal(self) -> Principal:
        """The caller that shows it."""
        return Principal(self.name, frozenset(self.roles), self.tables)

    @property
    def has_expired(self) -> bool:
        """Whether it is not valid any more."""
        return self.expires is not None and self.expires <= datetime.now(timezone.utc)


def _each_once(tokens: tuple[Token, ...]) -> tuple[Token, ...]:
    for name, count in Counter(token.name for token in tokens).items():
        if count > 1:
            raise ValueError(f"{count} tokens have the name {name!r}")
    return tokens


class Tokens(BaseModel):
    """The tokens of a server.

    Attributes:
        version: the format of the file.
        tokens: in the order in which they were made. Each has a name of its own.
    """

    model_config = STRICT

    version: Annotated[int, AfterValidator(_format)] = FORMAT
    tokens: Annotated[tuple[Token, ...], AfterValidator(_each_once)] = ()

    def with_token(self, token: Token) -> Self:
        """These, and one more.

        Raises:
            InvalidArgumentError: one has its name.
        """
        if any(token.name == known.name for known in self.tokens):
            raise InvalidArgumentError(f"a token has the name {token.name!r} already: revoke that one, or take another name")
        return self.model_copy(update={"tokens": (*self.tokens, token)})

    def without(self, name: str) -> Self:
        """These, without the one of that name.

        Raises:
            InvalidArgumentError: there is none.
        """
        left = tuple(token for token in self.tokens if token.name != name)
        if len(left) == len(self.tokens):
            raise InvalidArgumentError(f"no token has the name {shown(name)}")
        return self.model_copy(update={"tokens": left})
