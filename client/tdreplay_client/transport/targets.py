"""Which server a client talks to, and how: what is given, then what the environment says, then what a profile says."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tdreplay.environment import CLIENT_SETTINGS, environment_name
from tdreplay.errors import InvalidArgumentError
from tdreplay.limits import shown
from tdreplay_client.transport.access import TLS, Access, check_token, read_token
from tdreplay_client.transport.addresses import check_target, stays_here

__all__ = ["Target", "found_access", "found_target"]

SAID = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
KEYS = {"client_cert_file": "cert_file", "client_key_file": "key_file"}
"""Settings whose variables have a longer name than in a profile: a server's settings have the short one."""
TLS_KEYS = ("ca_file", "cert_file", "key_file", "server_name")
TOKEN_KEYS = {"token", "token_file"}


class Target(NamedTuple):
    """A server, and what a client shows to it.

    Attributes:
        address: of the server.
        access: TLS and token.
    """

    address: str
    access: Access


def found_target(
    address: str | None, tls: TLS | bool | None = None, token: str | None = None, profile: str | None = None, *, usual: str = ""
) -> Target:
    """The server to talk to, and how.

    Args:
        address: of the server; None: as the environment and the profile say.
        tls: a `TLS`, which counts as it is; True: TLS with the files that the environment and the profile name; False: none. None: as they say.
        token: '' for none; None: as they say.
        profile: the name of a profile; None: the one that the environment names, or none.
        usual: the address where none is said anywhere.

    Raises:
        InvalidArgumentError: an argument, a variable or the profile breaks its rule; no address is said; a file cannot be read; or a token would go
            to another host without TLS.
    """
    found = _found(profile)
    where = address if address is not None else found.get("address") or usual
    if not where and address is None:
        raise InvalidArgumentError(f"address (None) must be given, or {environment_name('address')} be set, or a profile be named that has one")
    target = check_target(where)
    return Target(target, _access(target, tls, token, found))


def found_access(address: str, tls: TLS | bool | None = None, token: str | None = None, profile: str | None = None) -> Access:
    """What a client shows to the server at `address`: as `found_target`."""
    return found_target(address, tls, token, profile).access


def _found(profile: str | None) -> dict[str, Any]:
    """What the environment says, and what the profile says beside it."""
    if profile is not None and not isinstance(profile, str):
        raise InvalidArgumentError(f"profile ({shown(profile)}) must be a name")
    named = profile or os.environ.get(environment_name("profile")) or ""
    said, below = _of_environment(os.environ), _of_profile(named) if named else {}
    if TOKEN_KEYS & said.keys():
        below = {key: value for key, value in below.items() if key not in TOKEN_KEYS}
    return below | said


def _of_profile(name: str) -> dict[str, Any]:
    from tdreplay_client.transport.profiles import profiles_file, read_profile  # Here: `tdreplay health` has no time for it.

    return read_profile(name, profiles_file())


def _of_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """The settings that the environment has, under their names in a profile. A variable that is empty is not set."""
    names = {name: environment_name(name) for name in CLIENT_SETTINGS if name not in ("profile", "profiles")}
    found: dict[str, Any] = {KEYS.get(name, name): environment[variable] for name, variable in names.items() if environment.get(variable)}
    if found.keys() >= TOKEN_KEYS:
        raise InvalidArgumentError("TDREPLAY_TOKEN and TDREPLAY_TOKEN_FILE are both set: one of them says the token")
    if "tls" in found:
        found["tls"] = _flag(names["tls"], found["tls"])
    return found


def _flag(variable: str, text: str) -> bool:
    said = SAID.get(text.strip().lower())
    if said is None:
        raise InvalidArgumentError(f"{variable} ({shown(text)}) must be true or false")
    return said


def _access(address: str, tls: TLS | bool | None, token: str | None, found: Mapping[str, Any]) -> Access:
    if tls is not None and not isinstance(tls, (TLS, bool)):
        raise InvalidArgumentError(f"tls ({shown(tls)}) must be a TLS, True, False or None")
    encryption = _tls(tls, found)
    shows, file = _token(token, found)
    if shows and encryption is None and not stays_here(address):
        raise InvalidArgumentError(
            f"a token goes to {address} over TLS alone: give tls, too. Without it, a token goes over loopback and Unix sockets: 127.0.0.1, ::1, "
            "localhost and unix:PATH"
        )
    return Access(encryption, shows, file)


def _tls(given: TLS | bool | None, found: Mapping[str, Any]) -> TLS | None:
    """TLS as it is given; else as it is said, and where nothing is said of TLS itself, where something is said that needs it."""
    if isinstance(given, TLS):
        return given
    named = {key: found[key] for key in TLS_KEYS if key in found}
    wanted = given if given is not None else found.get("tls", bool(named))
    return TLS(**named) if wanted else None


def _token(given: str | None, found: Mapping[str, Any]) -> tuple[str, Path | None]:
    """The token, and the file that it was read from."""
    if given is not None and not isinstance(given, str):
        raise InvalidArgumentError("token must be a text")
    if given is not None or "token_file" not in found:
        token = found.get("token", "") if given is None else given
        return (check_token(token, "token") if token else ""), None
    file = Path(found["token_file"]).expanduser().absolute()
    return read_token(file), file
