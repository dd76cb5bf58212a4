"""Environment variables that set the settings, and suggestions for misspelt ones."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

from tdreplay.errors import InvalidArgumentError

__all__ = ["CLIENT_SETTINGS", "ENV_PREFIX", "environment_name", "nearest", "unknown_names"]

ENV_PREFIX = "TDREPLAY_"
OTHERS = frozenset(map("TDREPLAY_{}".format, ["BENCH_ENVS", "BROWSER", "DOCKER", "FAILPOINT", "FLOODS", "FUZZ", "KILLS", "LONG", "PROMETHEUS"]))
"""Variables of the benchmarks and the tests. They are no settings."""

CLIENT_SETTINGS = (
    "address",
    "tls",
    "ca_file",
    "client_cert_file",
    "client_key_file",
    "server_name",
    "token",
    "token_file",
    "profile",
    "profiles",
)
"""What a client takes from the environment. It may stand beside a server's settings, in one container."""
SERVER_ALIKE = ("cert_file", "key_file", "client_cert_auth", "tokens_file")
"""Settings of a server whose names are near to a client's: they are no misspelt ones."""


def environment_name(setting: str) -> str:
    """The environment variable that sets `setting`."""
    return f"{ENV_PREFIX}{setting.upper()}"


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that `name` probably stands for; None if none is similar."""
    alike = {known.replace("_", ""): known for known in names}
    found = difflib.get_close_matches(name.replace("_", "").replace("-", ""), alike, n=1, cutoff=0.7)
    return alike[found[0]] if found else None


def unknown_names(environment: Iterable[str], settings: Collection[str]) -> list[str]:
    """The sorted variables that begin as tdreplay's do, but set none of `settings`. They may be another program's, such as Kubernetes'.

    Raises:
        InvalidArgumentError: a variable is so similar to a setting's that it is probably misspelt; the message names the setting.
    """
    known = {environment_name(setting) for setting in (*settings, *CLIENT_SETTINGS, *SERVER_ALIKE)} | OTHERS
    unknown = sorted(name for name in environment if name.upper().startswith(ENV_PREFIX) and name.upper() not in known)
    for name in unknown:
        meant = nearest(name[len(ENV_PREFIX) :].lower(), settings)
        if meant is not None:
            raise InvalidArgumentError(f"{name} in the environment is not a setting: {environment_name(meant)} is")
    return unknown
