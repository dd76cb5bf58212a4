"""The options that the commands of the client have in common."""

from __future__ import annotations

import os
from contextvars import ContextVar
from typing import Annotated

import typer

from tdreplay.environment import CLIENT_SETTINGS, environment_name, unknown_names
from tdreplay_client.transport.targets import Target, found_target

__all__ = ["Address", "Profile", "Timeout", "choose_profile", "found_server"]

LOCAL = "127.0.0.1:50051"
VARIABLE = environment_name("address")

Address = Annotated[str, typer.Option(help=f"Of the server: HOST:PORT or unix:PATH. [env: {VARIABLE}] [default: {LOCAL}]", show_default=False)]
Timeout = Annotated[float, typer.Option(metavar="SECONDS", help="How long the server may take to answer, or to say how far it is.")]
Profile = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Of ~/.config/tdreplay/profiles.toml: the address, the TLS and the token of a server. "
        f"[env: {environment_name('profile')}; the file: {environment_name('profiles')}]",
        show_default=False,
    ),
]


_profile: ContextVar[str] = ContextVar("profile", default="")


def choose_profile(name: str) -> None:
    """Notes the profile that the running command was given: ``tdreplay --profile NAME ...``; '': none was."""
    _profile.set(name)


def found_server(address: str, *, token: str | None = None) -> Target:
    """The server to use, and the access to it: as given, or from the environment, the profile, or the usual one. An empty address is not given.

    Args:
        address: as it was given.
        token: '': no token is sent, and none is looked for. None: as the environment and the profile say.

    Raises:
        InvalidArgumentError: what was found breaks its rule, or the environment has a misspelt variable.
    """
    unknown_names(os.environ, CLIENT_SETTINGS)
    return found_target(address or None, token=token, profile=_profile.get() or None, usual=LOCAL)
