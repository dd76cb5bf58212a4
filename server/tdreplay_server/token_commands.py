"""``tdreplay-server token``: make tokens, list them, revoke them. A running server takes a change within a second or two."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Annotated

import typer

from tdreplay.environment import environment_name
from tdreplay.errors import InvalidArgumentError
from tdreplay.limits import shown
from tdreplay_server.access.principal import EVERY_TABLE, check_pattern
from tdreplay_server.access.roles import Role
from tdreplay_server.access.tokens import Token, Tokens, check_token_name, digest_of, new_secret
from tdreplay_server.access.tokens_file import change_tokens, read_tokens

__all__ = ["token_app"]

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
LONGEST = 100 * 365 * 86400
VARIABLE = environment_name("tokens_file")

token_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Make, list and revoke the tokens that callers show.")

TokensFile = Annotated[
    str, typer.Option("--tokens-file", help=f"The file that the server's setting tokens_file names. [env: {VARIABLE}]", metavar="PATH")
]


@token_app.command()
def create(
    role: Annotated[list[Role], typer.Option(help="What the caller may do; may be given several times.", show_default=False)],
    table: Annotated[
        list[str] | None, typer.Option(help="On which tables: a name, or a pattern with * and ?; may be given several times. [default: all]")
    ] = None,
    name: Annotated[str, typer.Option(help="What logs and 'token revoke' call the token. [default: the roles and some digits]")] = "",
    expires: Annotated[str, typer.Option(help="How long it is valid: 12h, 30d, 8w. [default: until it is revoked]")] = "",
    tokens_file: TokensFile = "",
) -> None:
    """Make a token, and print it once on standard output. The file keeps its hash: nobody can show the token again."""
    secret, now = new_secret(), datetime.now(timezone.utc).replace(microsecond=0)
    roles = tuple(dict.fromkeys(role))
    made = Token(
        name=_name(name, roles),
        sha256=digest_of(secret).hex(),
        roles=roles,
        tables=tuple(map(check_pattern, table or [EVERY_TABLE])),
        created=now,
        expires=now + _duration(expires) if expires else None,
    )
    _change(tokens_file, lambda tokens: tokens.with_token(made))
    typer.echo(f"token {made.name} made: {_described(made)}", err=True)
    typer.echo(secret)


@token_app.command("list")
def list_tokens(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    tokens_file: TokensFile = "",
) -> None:
    """List the tokens by name, with what they allow. The tokens themselves are not known."""
    tokens = read_tokens(_path(tokens_file)).tokens
    if as_json:
        typer.echo(json.dumps([token.model_dump(mode="json", exclude={"sha256"}) for token in tokens], indent=1))
        return
    width = max((len(token.name) for token in tokens), default=0)
    for token in tokens:
        typer.echo(f"{token.name:<{width}}  {_described(token)}")


@token_app.command()
def revoke(name: Annotated[str, typer.Argument(help="The token's name, as 'token list' shows it.")], tokens_file: TokensFile = "") -> None:
    """Make a token invalid. Calls that are open go on; new ones are refused."""
    _change(tokens_file, lambda tokens: tokens.without(name))
    typer.echo(f"token {name} revoked", err=True)


def _change(tokens_file: str, change: Callable[[Tokens], Tokens]) -> None:
    change_tokens(_path(tokens_file), change)


def _path(given: str) -> Path:
    path = given or os.environ.get(VARIABLE, "")
    if not path.strip():
        raise InvalidArgumentError(f"give the file with the tokens: --tokens-file, or {VARIABLE} in the environment")
    return Path(path).expanduser()


def _name(given: str, roles: tuple[Role, ...]) -> str:
    return check_token_name(given) if given else f"{'-'.join(role.value for role in roles)}-{secrets.token_hex(3)}"


def _duration(text: str) -> timedelta:
    found = re.fullmatch(r"([1-9][0-9]{0,9})([smhdw])", text)
    seconds = int(found[1]) * UNITS[found[2]] if found else 0
    if not 0 < seconds <= LONGEST:
        raise InvalidArgumentError(f"expires ({shown(text)}) must be a whole number of s, m, h, d or w, such as 30d, and at most 100 years")
    return timedelta(seconds=seconds)


def _described(token: Token) -> str:
    ends = f"{'expired' if token.has_expired else 'expires'} {token.expires:%Y-%m-%d %H:%M} UTC" if token.expires else "does not expire"
    return f"roles {','.join(role.value for role in token.roles)}; tables {','.join(token.tables)}; {ends}"
